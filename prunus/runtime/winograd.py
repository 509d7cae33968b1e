r"""Winograd's convolution: dense 3x3 layers with 2.25 or 4 times fewer multiplications.

    Y = A' [ sum over c of (G w_oc G') * (B' d_c B) ] A                  (Lavin and Gray 2016, equation 12)

`d_c`: a patch of (m + 2) x (m + 2) pixels of the input; `Y`: m x m pixels of the output; `*`: number by number.  The
lanes of a vector are tiles of the picture, so that the transforms are sums of whole vectors.  A strip of T patches is
transformed, multiplied by the transformed weights, a matrix product for each of the (m + 2)^2 places, and transformed
back; what lies between stays in the second cache.  Channels may come in lists, as in `channels`.

Sums are rounded more than those of the direct convolution: by about 3e-7 (m = 2) or 5e-6 (m = 4) of the largest output
in float32; and what is not a finite number makes its whole patch so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from prunus.runtime.activations import activate
from prunus.runtime.channels import INPUT, JOB, OUTPUT
from prunus.runtime.emit import Emitter

# by m, the pixels of an output patch along an axis; the points are 0, 1, -1, (2, -2,) and infinity
INPUT_OF = {
    2: [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    4: [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
}
OUTPUT_OF = {
    2: [[1, 1, 1, 0], [0, 1, -1, -1]],
    4: [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
}
SLOTS: tuple[str, ...] = (
    "x",
    "y",
    "residual",
    "bias",
    "weights",
    "ins",
    "outs",
    "jobs",
    "segments",
    "patches",
    "strips",
)
SLOTS += ("n_strips", "low", "high", "work", "plane", "products", "share", "place", "mask", "c_in", "c_out")
NUMBERS = ("n_strips", "plane", "products", "share", "place", "c_in", "c_out")  # which of them are no pointers


@dataclass(frozen=True)
class WinogradKernel:
    """The geometry that a kernel is made for.  All distances are in bytes."""

    lanes: int
    m: int  # pixels of an output patch along an axis
    patches: int  # at a time
    together: int  # output channels at a time
    x_row: int
    x_plane: int
    y_row: int
    y_plane: int
    residual: tuple[int, int] | None = None  # its row and plane
    function: str = ""  # of `activations`, in place of the bounds
    listed: bool = False  # whether lists say which channels are read and made; else all are
    mask: str = ""  # whether outputs are multiplied by their float of `mask`, ``before`` or ``after`` all that follows

    @property
    def places(self) -> int:
        """Numbers of a transformed patch."""
        return (self.m + 2) ** 2


def transform(e: Emitter, matrix: Sequence[Sequence[int]], patch: list[list[Any]]) -> list[list[Any]]:
    """``M P M'`` for a square of vectors."""

    def times(column: list[Any]) -> list[Any]:
        made = []
        for row in matrix:
            total = None
            # what is added first needs no sign
            for factor, value in sorted(zip(row, column), key=lambda pair: pair[0] < 0):
                if factor == 0:
                    continue
                if total is None:
                    total = value if factor == 1 else e.b.fmul(value, e.floats(factor))
                elif abs(factor) == 1:
                    total = (e.b.fadd if factor > 0 else e.b.fsub)(total, value)
                else:
                    total = e.call("fma", value, e.floats(factor), total)
            made.append(total)
        return made

    across = [times(row) for row in patch]
    down = [times([row[i] for row in across]) for i in range(len(matrix))]
    return [[column[i] for column in down] for i in range(len(matrix))]


@dataclass(frozen=True)
class Job:
    """The channels that a job reads and makes: stretches of the lists, or all."""

    first_in: Any
    last_in: Any
    first_out: Any
    last_out: Any


class Code:
    """The parts of a kernel, on one emitter: what a job does with a strip, whose first patch is at `first`."""

    def __init__(self, k: WinogradKernel) -> None:
        self.k, self.e = k, Emitter(k.lanes)
        e = self.e
        kinds = dict.fromkeys(NUMBERS, e.i64)
        of = {name: e.slot(i, kinds.get(name)) for i, name in enumerate(SLOTS) if name not in ("low", "high")}
        self.of, self.vector, self.row = of, 4 * k.lanes, k.patches * 4 * k.lanes
        self.low, self.high = (e.broadcast(e.arguments, 8 * SLOTS.index(name)) for name in ("low", "high"))
        self.transformed = e.offset(of["work"], e.b.mul(e.thread, of["share"]))
        self.product = e.offset(self.transformed, of["products"])

    def times(self, value: Any, factor: int) -> Any:
        """A number times a constant."""
        return self.e.b.mul(value, self.e.const(factor))

    def of_input(self, c: Any) -> tuple[Any, Any]:
        """Bytes to an input channel, and to its weights from those of an output."""
        e, k = self.e, self.k
        if not k.listed:
            return self.times(c, k.x_plane), self.times(c, 4 * k.together)
        record = e.offset(self.of["ins"], self.times(c, INPUT.itemsize))
        return e.number(record, e.const(0)), e.number(record, e.const(1))

    def of_output(self, o: Any) -> list[Any]:
        """Bytes to an output channel, its weights, its bias, and its residual."""
        e, k = self.e, self.k
        if not k.listed:
            rest = self.times(o, k.residual[1]) if k.residual else e.const(0)
            return [self.times(o, k.y_plane), self.times(e.b.mul(o, self.of["c_in"]), 4), self.times(o, 4), rest]
        record = e.offset(self.of["outs"], self.times(o, OUTPUT.itemsize))
        return [e.number(record, e.const(i)) for i in range(4)]

    def into(self, first: Any, j: Job, c: Any) -> None:
        """The patches of an input channel, transformed: (places, C_in, patches) vectors."""
        e, k, n = self.e, self.k, self.k.m + 2
        channel, at = e.offset(self.of["x"], self.of_input(c)[0]), self.times(e.b.sub(c, j.first_in), self.row)

        def patch(t: Any) -> None:
            source = e.offset(channel, e.number(first, t, 12))
            held = [[e.load(source, r * k.x_row + q * self.vector) for q in range(n)] for r in range(n)]
            target = e.offset(self.transformed, e.b.add(at, self.times(t, self.vector)))
            for value in (v for line in transform(e, INPUT_OF[k.m], held) for v in line):
                e.store(value, target)
                target = e.offset(target, self.of["plane"])

        e.loop(0, k.patches, patch)

    def group(self, j: Job, place: Any, g: Any, many: int) -> None:
        """`many` outputs from the `g`-th on, at a place: a product with all inputs: (C_out, places, patches)."""
        e, k, n_patches = self.e, self.k, self.k.patches
        of_place = e.offset(self.transformed, e.b.mul(place, self.of["plane"]))
        w = e.offset(self.of["weights"], e.b.mul(place, self.of["place"]))
        # of each output where they are listed; else of the first, and the others' lie beside
        pointers = [e.offset(w, self.of_output(e.b.add(g, e.const(i)))[1]) for i in range(many if k.listed else 1)]

        def channel(c: Any, *sums: Any) -> list[Any]:
            source, at = e.offset(of_place, self.times(e.b.sub(c, j.first_in), self.row)), self.of_input(c)[1]
            values = [e.load(source, t * self.vector) for t in range(n_patches)]
            here = [e.offset(p, at) for p in pointers]
            new = []
            for i in range(many):
                factor = e.broadcast(here[i]) if k.listed else e.broadcast(here[0], 4 * i)
                new += [e.call("fma", factor, v, sums[i * n_patches + t]) for t, v in enumerate(values)]
            return new

        sums = e.loop(j.first_in, j.last_in, channel, [e.floats(0.0)] * (many * n_patches))
        at = e.b.add(self.times(e.b.sub(g, j.first_out), k.places * self.row), self.times(place, self.row))
        for i in range(many):
            for t in range(n_patches):
                e.store(sums[i * n_patches + t], e.offset(self.product, at), i * k.places * self.row + t * self.vector)

    def multiply(self, j: Job, place: Any) -> None:
        """All outputs at a place."""
        e, k = self.e, self.k
        many = e.const(k.together)
        if not k.listed:  # there are weights and room for whole groups
            e.loop(j.first_out, j.last_out, lambda g: self.group(j, place, g, k.together), step=k.together)
            return
        count = e.b.sub(j.last_out, j.first_out)
        whole = e.b.sub(j.last_out, e.b.srem(count, many))
        e.loop(j.first_out, whole, lambda g: self.group(j, place, g, k.together), step=k.together)
        # the last ones once more together with some before them, or, where they are too few, one by one
        enough, again = e.b.icmp_signed(">=", count, many), e.b.sub(j.last_out, many)
        with e.b.if_else(enough) as (some, few):
            with some:
                left = e.b.zext(e.b.icmp_signed("<", whole, j.last_out), e.i64)
                e.loop(0, left, lambda _: self.group(j, place, again, k.together))
            with few:
                e.loop(whole, j.last_out, lambda g: self.group(j, place, g, 1))

    def out_of(self, first: Any, j: Job, o: Any, *, empty: bool) -> None:
        """The patches of an output channel, transformed back, with all that follows; `empty`: its sum is zero."""
        e, k, n = self.e, self.k, self.k.m + 2
        to, _, of_bias, rest = self.of_output(o)
        bias = e.broadcast(e.offset(self.of["bias"], of_bias))
        factor = e.broadcast(e.offset(self.of["mask"], of_bias)) if k.mask else None

        def finish(value: Any, other: Any, at: int) -> Any:
            value = e.b.fadd(value, bias)
            value = e.b.fmul(value, factor) if k.mask == "before" else value
            value = e.b.fadd(value, e.load(other, at)) if other is not None else value
            value = activate(e, k.function, value, self.low, self.high)
            return e.b.fmul(value, factor) if k.mask == "after" else value

        def patch(t: Any) -> None:
            lines = [[e.floats(0.0)] * k.m] * k.m
            if not empty:
                at = e.b.add(self.times(e.b.sub(o, j.first_out), k.places * self.row), self.times(t, self.vector))
                source = e.offset(self.product, at)
                held = [[e.load(source, (r * n + q) * self.row) for q in range(n)] for r in range(n)]
                lines = transform(e, OUTPUT_OF[k.m], held)
            target, other = e.offset(e.offset(self.of["y"], to), e.number(e.offset(first, 4), t, 12)), None
            if k.residual:
                other = e.offset(e.offset(self.of["residual"], rest), e.number(e.offset(first, 8), t, 12))
            for r, line in enumerate(lines):
                for q, value in enumerate(line):
                    beside = r * k.residual[0] + q * self.vector if k.residual else 0
                    e.store(finish(value, other, beside), target, r * k.y_row + q * self.vector)

        e.loop(0, k.patches, patch)

    def strip(self, s: Any, j: Job) -> None:
        """A job on a strip."""
        e = self.e
        first = e.offset(self.of["patches"], self.times(e.number(self.of["strips"], s), 12))

        def whole() -> None:
            e.loop(j.first_in, j.last_in, lambda c: self.into(first, j, c))
            e.loop(0, self.k.places, lambda place: self.multiply(j, place))
            e.loop(j.first_out, j.last_out, lambda o: self.out_of(first, j, o, empty=False))

        if not self.k.listed:
            whole()
            return
        with e.b.if_else(e.b.icmp_signed("<", j.first_in, j.last_in)) as (some, none):
            with some:
                whole()
            with none:  # channels that are off
                e.loop(j.first_out, j.last_out, lambda o: self.out_of(first, j, o, empty=True))


@cache
def emit(k: WinogradKernel) -> str:
    """The kernel in LLVM's language; its arguments are `SLOTS`.

    Threads share the strips, or, where channels are listed, the jobs; lists and jobs are those of `channels`.
    """
    code = Code(k)
    e, of = code.e, code.of

    def job(number: Any) -> None:
        record = e.offset(of["jobs"], code.times(number, JOB.itemsize))
        j = Job(*(e.number(record, e.const(i)) for i in range(4)))
        e.loop(0, of["n_strips"], lambda s: code.strip(s, j))

    if k.listed:
        segments = of["segments"]
        e.loop(e.number(segments, e.thread), e.number(e.offset(segments, 4), e.thread), job)
    else:
        every = Job(e.const(0), of["c_in"], e.const(0), of["c_out"])
        e.loop(*e.share(of["n_strips"]), lambda s: code.strip(s, every))
    return str(e)
