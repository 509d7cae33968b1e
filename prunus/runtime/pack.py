"""A layer's weights as the lists that the convolution kernel runs through."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from prunus.core.errors import InputError
from prunus.runtime.convolution import FIRST, LAST, RECORD, Kernel
from prunus.runtime.layout import Layout


@dataclass(frozen=True)
class Shape:
    """What a convolution is, beside its weights: numbers for (height, width)."""

    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def halo(self, kernel: tuple[int, int]) -> int:
        """How far the taps of a tile's outputs reach beyond the tile's inputs."""
        ends = [(k - 1) * d - p - self.stride + 1 for k, d, p in zip(kernel, self.dilation, self.padding)]
        return max(0, *self.padding, *ends)

    def output(self, size: int, kernel: int, axis: int) -> int:
        """Pixels of the output along an axis."""
        return (size + 2 * self.padding[axis] - self.dilation[axis] * (kernel - 1) - 1) // self.stride + 1


@dataclass(frozen=True)
class Choice:
    """What is free in how a layer is run: by which kernel, and with that

    by lists or dense, a strip's rows and columns of vectors, the input channels at a time, and the output channels
    together; by Winograd's transforms, a patch's rows, the patches of a strip in columns, and the outputs together.
    """

    rows: int
    columns: int
    channels: int
    together: int = 1
    unroll: int = 1
    by: str = "lists"  # the kernel of `convolution`; "dense": of `channels`; "winograd": of `winograd`


@dataclass(frozen=True)
class Lists:
    """The weights of a layer for `Kernel`: entries (n, 1 + together) int32 of offset and weights; see `pack`."""

    entries: np.ndarray
    records: np.ndarray
    segments: np.ndarray
    blocks: int


def pack(weight: np.ndarray, shape: Shape, x: Layout, choice: Choice, threads: int = 1) -> Lists:
    """The lists of a layer.

    weight (C_out, C_in / groups, kh, kw) -> for every block of input channels and every thread a segment of records,
    each an output channel (or `choice.together` of them) with its stretch of entries: the bytes from the input's start
    to what the weight multiplies, and the weight.  Threads get output channels with about as many nonzeros.
    """
    c_out, c_in, kh, kw = weight.shape
    o, c, ky, kx = np.nonzero(weight)
    value = weight[o, c, ky, kx].astype(np.float32)
    absolute = c + o // (c_out // shape.groups) * c_in
    offset = absolute * x.plane + (ky * shape.dilation[0] - shape.padding[0] + x.halo) * x.row
    offset = offset + (kx * shape.dilation[1] - shape.padding[1] + x.halo) * 4 * x.lanes
    k, many = choice.together, -(-c_out // choice.together)
    group, block = o // k, absolute // choice.channels
    blocks = max(1, -(-c_in * shape.groups // choice.channels))

    # an entry is a place of the input that any of the output channels of a group reads
    key = (block * many + group) * (int(offset.max(initial=0)) + 1) + offset
    _, of_first, entry = np.unique(key, return_index=True, return_inverse=True)
    weights = np.zeros((len(of_first), k), dtype=np.float32)
    weights[entry, o % k] = value
    offset, group, block = offset[of_first], group[of_first], block[of_first]

    # a record is a group within a block; groups without a weight get one that gives the bias
    cell = block * many + group
    count = np.bincount(cell, minlength=blocks * many).reshape(blocks, many)
    count[0, count.sum(0) == 0] = -1
    present = count != 0
    steps = np.where(present, -(-np.maximum(count, 0) // choice.unroll), 0)
    work = np.cumsum((steps * choice.unroll + 2 * present).sum(0))
    owner = np.minimum((work - 1) * threads // max(1, work[-1]), threads - 1)
    at_block, at_group = np.nonzero(present)
    sizes = steps[at_block, at_group] * choice.unroll
    # lists of a length follow each other, so that the end of the inner loop is foretold
    order = np.lexsort((at_group, sizes, owner[at_group], at_block))
    records = np.zeros(len(order) + 1, dtype=RECORD)  # one more than are run, for the kernel that looks ahead
    ends = np.cumsum(sizes[order])
    records["channel"][:-1] = at_group[order] * k
    records["start"][:-1], records["end"][:-1] = ends - sizes[order], ends
    first, last = present.argmax(0), blocks - 1 - present[::-1].argmax(0)
    records["flags"][:-1] = FIRST * (at_block == first[at_group])[order] + LAST * (at_block == last[at_group])[order]
    segment = (at_block * threads + owner[at_group])[order]
    segments = np.searchsorted(segment, np.arange(blocks * threads + 1)).astype(np.int32)

    # lists are filled up to the kernel's step with zero weights of a place that is read anyway
    where = np.zeros((blocks, many), dtype=np.int64)
    where[at_block[order], at_group[order]] = records["start"][:-1]
    run = np.argsort(cell, kind="stable")
    within = np.empty(len(cell), dtype=np.int64)
    within[run] = np.arange(len(cell)) - np.searchsorted(cell[run], cell[run])
    entries = np.zeros((int(ends[-1]) if len(ends) else 0, 1 + k), dtype=np.int32)
    place = where[block, group] + within
    entries[place, 0] = offset
    entries[place, 1:] = weights.view(np.int32)
    filled = np.zeros(len(entries), dtype=bool)
    filled[place] = True
    fill = np.maximum.accumulate(np.where(filled, np.arange(len(entries)), 0))
    entries[:, 0] = entries[fill, 0]
    return Lists(entries, records, segments, blocks)


def strips(x: Layout, y: Layout, residual: Layout | None, choice: Choice, shape: Shape) -> np.ndarray:
    """Where every strip begins in a channel of input, output and residual, in bytes: (strips, 3) int32.

    The last strips of a row or column overlap their neighbours where the tile is no multiple of them.
    """
    rows = _starts(y.tile[0], choice.rows)
    columns = _starts(y.tile[1], choice.columns)
    found = []
    for r in rows:
        for c in columns:
            of_x = r * shape.stride * x.row + c * shape.stride * 4 * x.lanes
            found.append((of_x, y.at(r, c), residual.at(r, c) if residual else 0))
    return np.array(found, dtype=np.int32)


def _starts(length: int, step: int) -> list[int]:
    return [min(i, length - step) for i in range(0, length, step)]


def kernel(x: Layout, y: Layout, residual: Layout | None, choice: Choice, shape: Shape, ahead: bool = False) -> Kernel:
    """The kernel that the lists of `pack` are for."""
    return Kernel(
        lanes=x.lanes,
        rows=choice.rows,
        columns=choice.columns,
        x_row=shape.stride * x.row,
        x_step=shape.stride * 4 * x.lanes,
        y_row=y.row,
        y_plane=y.plane,
        together=choice.together,
        unroll=choice.unroll,
        residual=(residual.row, residual.plane) if residual else None,
        ahead=ahead,
    )


def flat(layout: Layout) -> Layout:
    """A layout without halo as one long row: what a 1x1 convolution may take it for."""
    return replace(layout, tile=(1, layout.tile[0] * layout.tile[1]))


def check_bounds(lists: Lists, table: np.ndarray, k: Kernel, sizes: tuple[int, int, int | None]) -> None:
    """Proves that a kernel with these lists stays within buffers of `sizes` bytes (input, output, residual).

    Every address it forms is base + strip + list + constant, so the least and the largest are known.  Raises
    `InputError` with what would be touched.
    """
    vector = 4 * k.lanes
    x_reach = (k.rows - 1) * k.x_row + (k.columns - 1) * k.x_step + vector
    y_reach = (k.rows - 1) * k.y_row + k.columns * vector
    channels = lists.records["channel"]
    top = int(channels.max(initial=0)) + k.together - 1
    reads = lists.entries[:, 0] if len(lists.entries) else np.zeros(1, dtype=np.int32)
    spans = [("input", int(reads.min() + table[:, 0].min()), int(reads.max() + table[:, 0].max()) + x_reach, sizes[0])]
    spans.append(("output", int(table[:, 1].min()), int(table[:, 1].max()) + top * k.y_plane + y_reach, sizes[1]))
    if k.residual:
        reach = (k.rows - 1) * k.residual[0] + k.columns * vector + top * k.residual[1]
        spans.append(("residual", int(table[:, 2].min()), int(table[:, 2].max()) + reach, sizes[2] or 0))
    for what, least, most, size in spans:
        if least < 0 or most > size:
            raise InputError(
                f"the kernel {k} would touch bytes {least} to {most} of its {what}, which has {size}. This is a fault "
                "of prunus: please report the layer."
            )
    if len(lists.entries) and (reads % vector).any():
        raise InputError(f"the kernel {k} would read its input unaligned. This is a fault of prunus: please report it.")
    starts, ends = lists.records["start"], lists.records["end"]
    if (starts < 0).any() or (ends > len(lists.entries)).any() or ((ends - starts) % k.unroll).any():
        raise InputError(f"a list of the kernel {k} leaves its entries. This is a fault of prunus: please report it.")
