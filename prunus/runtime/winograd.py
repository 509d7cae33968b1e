r"""Winograd's convolution: dense 3x3 layers with 2.25 or 4 times fewer multiplications.

    Y = A' [ sum over c of (G w_oc G') * (B' d_c B) ] A                  (Lavin and Gray 2016, equation 12)

`d_c`: a patch of (m + 2) x (m + 2) pixels of the input; `Y`: m x m pixels of the output; `*`: number by number.  The
lanes of a vector are tiles of the picture, so that the transforms are sums of whole vectors.  A strip of T patches is
transformed, multiplied by the transformed weights, a matrix product for each of the (m + 2)^2 places, and transformed
back; what lies between stays in the second cache.  Channels may come in lists, as in `channels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from prunus.core.errors import InputError
from prunus.runtime.activations import activate
from prunus.runtime.channels import INPUT, JOB, OUTPUT, Tables
from prunus.runtime.emit import Emitter
from prunus.runtime.layout import Layout
from prunus.runtime.pack import Choice, Shape

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
WEIGHT_OF = {
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    4: [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
}
OUTPUT_OF = {
    2: [[1, 1, 1, 0], [0, 1, -1, -1]],
    4: [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
}
SLOTS = ("x", "y", "residual", "bias", "weights", "ins", "outs", "jobs", "segments", "patches", "strips", "n_strips")
SLOTS_TOO = ("low", "high", "work", "plane", "products", "share", "place", "mask", "c_in", "c_out")


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


@cache
def emit(k: WinogradKernel) -> str:
    """The kernel in LLVM's language; its arguments are `SLOTS` and `SLOTS_TOO`.

    Threads share the strips, or, where channels are listed, the jobs; lists and jobs are those of `channels`.
    """
    e = Emitter(k.lanes)
    x, y, residual, bias, weights, ins, outs, jobs, segments, patches, strips = (e.slot(i) for i in range(11))
    n_strips, plane, products, share, place_bytes = (e.slot(i, e.i64) for i in (11, 15, 16, 17, 18))
    c_in, c_out = e.slot(20, e.i64), e.slot(21, e.i64)
    low, high = e.broadcast(e.arguments, 96), e.broadcast(e.arguments, 104)
    vector, n = 4 * k.lanes, k.m + 2
    row = k.patches * vector
    transformed = e.offset(e.slot(14), e.b.mul(e.thread, share))
    product, mask = e.offset(transformed, products), e.slot(19) if k.mask else None

    def times(value: Any, factor: int) -> Any:
        return e.b.mul(value, e.const(factor))

    def of_input(c: Any) -> tuple[Any, Any]:
        """Bytes to an input channel, and to its weights from those of an output."""
        if not k.listed:
            return times(c, k.x_plane), times(c, 4 * k.together)
        record = e.offset(ins, times(c, INPUT.itemsize))
        return e.number(record, e.const(0)), e.number(record, e.const(1))

    def of_output(o: Any) -> list[Any]:
        """Bytes to an output channel, its weights, its bias, and its residual."""
        if not k.listed:
            rest = times(o, k.residual[1]) if k.residual else e.const(0)
            return [times(o, k.y_plane), times(e.b.mul(o, c_in), 4), times(o, 4), rest]
        record = e.offset(outs, times(o, OUTPUT.itemsize))
        return [e.number(record, e.const(i)) for i in range(4)]

    def strip(s: Any, first_in: Any, last_in: Any, first_out: Any, last_out: Any) -> None:
        first = e.offset(patches, times(e.number(strips, s), 12))

        def into(c: Any) -> None:
            channel, at = e.offset(x, of_input(c)[0]), times(e.b.sub(c, first_in), row)

            def patch(t: Any) -> None:
                source = e.offset(channel, e.number(first, t, 12))
                held = [[e.load(source, r * k.x_row + q * vector) for q in range(n)] for r in range(n)]
                target = e.offset(transformed, e.b.add(at, times(t, vector)))
                for value in (v for line in transform(e, INPUT_OF[k.m], held) for v in line):
                    e.store(value, target)
                    target = e.offset(target, plane)

            e.loop(0, k.patches, patch)

        def multiply(place: Any) -> None:
            of_place, w = e.offset(transformed, e.b.mul(place, plane)), e.offset(weights, e.b.mul(place, place_bytes))

            def group(g: Any, many: int) -> None:
                starts = range(many if k.listed else 1)
                pointers = [e.offset(w, of_output(e.b.add(g, e.const(i)))[1]) for i in starts]

                def channel(c: Any, *sums: Any) -> list[Any]:
                    source, at = e.offset(of_place, times(e.b.sub(c, first_in), row)), of_input(c)[1]
                    values = [e.load(source, t * vector) for t in range(k.patches)]
                    here = [e.offset(p, at) for p in pointers]  # of all outputs together, or of each
                    new = []
                    for i in range(many):
                        factor = e.broadcast(here[i]) if k.listed else e.broadcast(here[0], 4 * i)
                        new += [e.call("fma", factor, v, sums[i * k.patches + t]) for t, v in enumerate(values)]
                    return new

                sums = e.loop(first_in, last_in, channel, [e.floats(0.0)] * (many * k.patches))
                at = e.b.add(times(e.b.sub(g, first_out), k.places * row), times(place, row))
                for i in range(many):
                    for t in range(k.patches):
                        e.store(sums[i * k.patches + t], e.offset(product, at), i * k.places * row + t * vector)

            if not k.listed:  # there are weights and room for whole groups
                e.loop(first_out, last_out, lambda g: group(g, k.together), step=k.together)
                return
            count, many = e.b.sub(last_out, first_out), e.const(k.together)
            whole = e.b.sub(last_out, e.b.srem(count, many))
            e.loop(first_out, whole, lambda g: group(g, k.together), step=k.together)
            # the last ones once more together with some before them, or, where they are too few, one by one
            enough, again = e.b.icmp_signed(">=", count, many), e.b.sub(last_out, many)
            with e.b.if_else(enough) as (some, few):
                with some:
                    left = e.b.zext(e.b.icmp_signed("<", whole, last_out), e.i64)
                    e.loop(0, left, lambda _: group(again, k.together))
                with few:
                    e.loop(whole, last_out, lambda g: group(g, 1))

        def out_of(o: Any, empty: bool) -> None:
            to, _, of_bias, rest = of_output(o)
            offset = e.broadcast(e.offset(bias, of_bias))
            factor = e.broadcast(e.offset(mask, of_bias)) if k.mask else None

            def patch(t: Any) -> None:
                lines = [[e.floats(0.0)] * k.m] * k.m
                if not empty:
                    at = e.offset(product, e.b.add(times(e.b.sub(o, first_out), k.places * row), times(t, vector)))
                    held = [[e.load(at, (r * n + q) * row) for q in range(n)] for r in range(n)]
                    lines = transform(e, OUTPUT_OF[k.m], held)
                target = e.offset(e.offset(y, to), e.number(e.offset(first, 4), t, 12))
                for r, line in enumerate(lines):
                    for q, value in enumerate(line):
                        value = e.b.fadd(value, offset)
                        value = e.b.fmul(value, factor) if k.mask == "before" else value
                        if k.residual:
                            other = e.offset(e.offset(residual, rest), e.number(e.offset(first, 8), t, 12))
                            value = e.b.fadd(value, e.load(other, r * k.residual[0] + q * vector))
                        value = activate(e, k.function, value, low, high)
                        value = e.b.fmul(value, factor) if k.mask == "after" else value
                        e.store(value, target, r * k.y_row + q * vector)

            e.loop(0, k.patches, patch)

        def whole() -> None:
            e.loop(first_in, last_in, into)
            e.loop(0, k.places, multiply)
            e.loop(first_out, last_out, lambda o: out_of(o, empty=False))

        if not k.listed:
            whole()
            return
        with e.b.if_else(e.b.icmp_signed("<", first_in, last_in)) as (some, none):
            with some:
                whole()
            with none:  # channels that are off
                e.loop(first_out, last_out, lambda o: out_of(o, empty=True))

    def job(j: Any) -> None:
        record = e.offset(jobs, times(j, JOB.itemsize))
        ends = [e.number(record, e.const(i)) for i in range(4)]
        e.loop(0, n_strips, lambda s: strip(s, *ends))

    if k.listed:
        e.loop(e.number(segments, e.thread), e.number(e.offset(segments, 4), e.thread), job)
    else:
        e.loop(*e.share(n_strips), lambda s: strip(s, e.const(0), c_in, e.const(0), c_out))
    return str(e)


def fits(weight: tuple[int, ...], shape: Shape, y: Layout) -> list[int]:
    """The sizes of output patches with which a layer can be run: none unless it is 3x3 at stride one."""
    plain = weight[2:] == (3, 3) and shape.stride == 1 and shape.dilation == (1, 1) and shape.groups == 1
    return [m for m in INPUT_OF if plain and m <= min(y.tile)]


def kernel(x: Layout, y: Layout, residual: Layout | None, choice: Choice) -> WinogradKernel:
    """The kernel of a choice, whose rows are of an output patch, and its columns the patches at a time."""
    rest = (residual.row, residual.plane) if residual else None
    return WinogradKernel(x.lanes, choice.rows, choice.columns, choice.together, x.row, x.plane, y.row, y.plane, rest)


def pack(weight: np.ndarray, k: WinogradKernel) -> np.ndarray:
    """Weights (C_out, C_in, 3, 3), transformed, as they are read: (places, groups of outputs, C_in, `together`)."""
    g = np.array(WEIGHT_OF[k.m])
    u = np.einsum("ai,ocij,bj->aboc", g, weight.astype(np.float64), g, optimize=True)
    c_out, c_in = weight.shape[:2]
    groups = -(-c_out // k.together)
    filled = np.zeros((k.places, groups * k.together, c_in), dtype=np.float32)
    filled[:, :c_out] = u.reshape(k.places, c_out, c_in)
    return np.ascontiguousarray(filled.reshape(k.places, groups, k.together, c_in).transpose(0, 1, 3, 2))


def tables(t: Tables, weight: tuple[int, ...], k: WinogradKernel) -> Tables:
    """Tables of `channels` for weights (C_out, C_in, 3, 3), with the places that `pack` gave them."""
    ins, outs, (c_in, *taps) = t.ins.copy(), t.outs.copy(), weight[1:]
    tap = 4 * int(np.prod(taps))
    c, o = ins[:, 1] // tap, outs[:, 1] // (c_in * tap)
    ins[:, 1] = c * 4 * k.together
    outs[:, 1] = o // k.together * (c_in * k.together * 4) + o % k.together * 4
    return replace(t, ins=ins, outs=outs)


def patches(
    x: Layout, y: Layout, residual: Layout | None, shape: Shape, k: WinogradKernel
) -> tuple[np.ndarray, np.ndarray]:
    """Where every patch begins in a channel of input, output and residual, (n, 3) int32; and every strip's first patch.

    The last patches of a row or column overlap their neighbours, and so do the last strips.
    """
    rows, columns = ([min(i, size - k.m) for i in range(0, size, k.m)] for size in y.tile)
    found = [
        (x.at(r - shape.padding[0], c - shape.padding[1]), y.at(r, c), residual.at(r, c) if residual else 0)
        for r in rows
        for c in columns
    ]
    strips = [min(i, len(found) - k.patches) for i in range(0, len(found), k.patches)]
    return np.array(found, dtype=np.int32), np.array(strips, dtype=np.int32)


def work(c_in: int, c_out: int, k: WinogradKernel) -> tuple[int, int, int]:
    """Bytes from place to place of the transformed input, of it all, and of a thread's whole memory."""
    vector = 4 * k.lanes
    plane = (c_in * k.patches | 1) * vector  # places do not share a cache set
    products = plane * k.places
    return plane, products, products + -(-c_out // k.together) * k.together * k.places * k.patches * vector


def check_bounds(starts: np.ndarray, k: WinogradKernel, channels: tuple[int, int], sizes: Sequence[int | None]) -> None:
    """Proves that a kernel stays within buffers of `sizes` (input, output, residual) for (C_in, C_out) channels.

    Raises `InputError` with what would be touched.
    """
    vector, n = 4 * k.lanes, k.m + 2
    spans = [("input", 0, (channels[0] - 1) * k.x_plane + (n - 1) * k.x_row + n * vector)]
    spans.append(("output", 1, (channels[1] - 1) * k.y_plane + (k.m - 1) * k.y_row + k.m * vector))
    if k.residual:
        row, plane = k.residual
        spans.append(("residual", 2, (channels[1] - 1) * plane + (k.m - 1) * row + k.m * vector))
    for what, i, reach in spans:
        least, most, size = int(starts[:, i].min()), int(starts[:, i].max()) + reach, sizes[i] or 0
        if least < 0 or most > size or (starts[:, i] % vector).any():
            raise InputError(
                f"the kernel {k} would touch bytes {least} to {most} of its {what}, which has {size}. This is a fault "
                "of prunus: please report the layer."
            )
