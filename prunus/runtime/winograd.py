r"""Winograd's convolution: dense 3x3 layers with 2.25 or 4 times fewer multiplications.

    Y = A' [ sum over c of (G w_oc G') * (B' d_c B) ] A                  (Lavin and Gray 2016, equation 12)

`d_c`: a patch of (m + 2) x (m + 2) pixels of the input; `Y`: m x m pixels of the output; `*`: number by number.  The
lanes of a vector are tiles of the picture, so that the transforms are sums of whole vectors.  A strip of T patches is
transformed, multiplied by the transformed weights, a matrix product for each of the (m + 2)^2 places, and transformed
back; what lies between stays in the second cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from prunus.core.errors import InputError
from prunus.runtime.activations import activate
from prunus.runtime.emit import Emitter
from prunus.runtime.layout import Layout
from prunus.runtime.pack import Choice, Shape

# by m, the pixels of an output patch along an axis; the points are 0, 1, -1, (2, -2,) and infinity
INPUT = {
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
WEIGHT = {
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
OUTPUT = {
    2: [[1, 1, 1, 0], [0, 1, -1, -1]],
    4: [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
}
SLOTS = (
    "x",
    "y",
    "residual",
    "bias",
    "weights",
    "patches",
    "strips",
    "n_strips",
    "work",
    "low",
    "high",
    "c_in",
    "c_out",
    "plane",
    "products",
    "share",
)


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
    """The kernel in LLVM's language; its arguments are `SLOTS`."""
    e = Emitter(k.lanes)
    x, y, residual, bias, weights, patches, strips = (e.slot(i) for i in range(7))
    n_strips, c_in, c_out, plane, products, share = (e.slot(i, e.i64) for i in (7, 11, 12, 13, 14, 15))
    low, high = e.broadcast(e.arguments, 72), e.broadcast(e.arguments, 80)
    vector, n = 4 * k.lanes, k.m + 2
    transformed = e.offset(e.slot(8), e.b.mul(e.thread, share))
    product = e.offset(transformed, products)
    groups = e.b.sdiv(e.b.add(c_out, e.const(k.together - 1)), e.const(k.together))

    def times(value: Any, factor: int) -> Any:
        return e.b.mul(value, e.const(factor))

    def strip(s: Any) -> None:
        first = e.offset(patches, times(e.number(strips, s), 12))

        def into(c: Any) -> None:
            def patch(t: Any) -> None:
                source = e.offset(e.offset(x, times(c, k.x_plane)), e.number(first, t, 12))
                held = [[e.load(source, r * k.x_row + q * vector) for q in range(n)] for r in range(n)]
                at = e.offset(transformed, times(e.b.add(times(c, k.patches), t), vector))
                for value in (v for row in transform(e, INPUT[k.m], held) for v in row):
                    e.store(value, at)
                    at = e.offset(at, plane)

            e.loop(0, k.patches, patch)

        def multiply(place: Any) -> None:
            of_place = e.offset(transformed, e.b.mul(place, plane))

            def group(g: Any) -> None:
                here = e.b.add(e.b.mul(place, groups), g)
                w = e.offset(weights, times(e.b.mul(here, c_in), 4 * k.together))

                def channel(c: Any, *sums: Any) -> list[Any]:
                    source, factors = (
                        e.offset(of_place, times(c, k.patches * vector)),
                        e.offset(w, times(c, 4 * k.together)),
                    )
                    values = [e.load(source, t * vector) for t in range(k.patches)]
                    new = []
                    for i in range(k.together):
                        factor = e.broadcast(factors, 4 * i)
                        new += [e.call("fma", factor, v, sums[i * k.patches + t]) for t, v in enumerate(values)]
                    return new

                sums = e.loop(0, c_in, channel, [e.floats(0.0)] * (k.together * k.patches))
                row = k.patches * vector
                target = e.offset(product, e.b.add(times(g, k.together * k.places * row), times(place, row)))
                for i in range(k.together):
                    for t in range(k.patches):
                        e.store(sums[i * k.patches + t], target, i * k.places * row + t * vector)

            e.loop(0, groups, group)

        def out_of(o: Any) -> None:
            offset = e.broadcast(e.offset(bias, times(o, 4)))

            def patch(t: Any) -> None:
                at = e.offset(product, e.b.add(times(o, k.places * k.patches * vector), times(t, vector)))
                held = [[e.load(at, (r * n + q) * k.patches * vector) for q in range(n)] for r in range(n)]
                target = e.offset(e.offset(y, times(o, k.y_plane)), e.number(e.offset(first, 4), t, 12))
                for r, row in enumerate(transform(e, OUTPUT[k.m], held)):
                    for q, value in enumerate(row):
                        value = e.b.fadd(value, offset)
                        if k.residual:
                            other = e.offset(residual, times(o, k.residual[1]))
                            other = e.offset(other, e.number(e.offset(first, 8), t, 12))
                            value = e.b.fadd(value, e.load(other, r * k.residual[0] + q * vector))
                        e.store(activate(e, k.function, value, low, high), target, r * k.y_row + q * vector)

            e.loop(0, k.patches, patch)

        e.loop(0, c_in, into)
        e.loop(0, k.places, multiply)
        e.loop(0, c_out, out_of)

    e.loop(*e.share(n_strips), strip)
    return str(e)


def fits(weight: tuple[int, ...], shape: Shape, y: Layout) -> list[int]:
    """The sizes of output patches with which a layer can be run: none unless it is 3x3 at stride one."""
    plain = weight[2:] == (3, 3) and shape.stride == 1 and shape.dilation == (1, 1) and shape.groups == 1
    return [m for m in INPUT if plain and m <= min(y.tile)]


def kernel(x: Layout, y: Layout, residual: Layout | None, choice: Choice) -> WinogradKernel:
    """The kernel of a choice, whose rows are of an output patch, and its columns the patches at a time."""
    rest = (residual.row, residual.plane) if residual else None
    return WinogradKernel(x.lanes, choice.rows, choice.columns, choice.together, x.row, x.plane, y.row, y.plane, rest)


def pack(weight: np.ndarray, k: WinogradKernel) -> np.ndarray:
    """Weights (C_out, C_in, 3, 3), transformed: (places, groups of output channels, C_in, `together`)."""
    g = np.array(WEIGHT[k.m])
    u = np.einsum("ai,ocij,bj->aboc", g, weight.astype(np.float64), g, optimize=True)
    c_out, c_in = weight.shape[:2]
    groups = -(-c_out // k.together)
    filled = np.zeros((k.places, groups * k.together, c_in), dtype=np.float32)
    filled[:, :c_out] = u.reshape(k.places, c_out, c_in)
    return np.ascontiguousarray(filled.reshape(k.places, groups, k.together, c_in).transpose(0, 1, 3, 2))


def tables(
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


def check_bounds(
    patches: np.ndarray, k: WinogradKernel, channels: tuple[int, int], sizes: Sequence[int | None]
) -> None:
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
        least, most, size = int(patches[:, i].min()), int(patches[:, i].max()) + reach, sizes[i] or 0
        if least < 0 or most > size or (patches[:, i] % vector).any():
            raise InputError(
                f"the kernel {k} would touch bytes {least} to {most} of its {what}, which has {size}. This is a fault "
                "of prunus: please report the layer."
            )
