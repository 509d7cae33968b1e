"""A dense 3x3 layer's weights, and where its patches lie, as the kernel of `winograd` reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from prunus.core.errors import InputError
from prunus.runtime.channels import Tables
from prunus.runtime.layout import Layout
from prunus.runtime.pack import Choice, Shape
from prunus.runtime.winograd import INPUT_OF, WinogradKernel

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
}  # G, by m


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


def starts(
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
