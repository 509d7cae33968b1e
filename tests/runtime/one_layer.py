"""One convolution run by its kernel, on buffers that the caller may supply, and the same in float64 by torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import conv2d

from prunus.runtime import convolution, jit, memory
from prunus.runtime import pack as packing
from prunus.runtime.layout import Layout, pixels, places

INFINITY = float("inf")


def to_tiles(x: np.ndarray, layout: Layout, channels: int, allocate: Callable[[int], np.ndarray]) -> np.ndarray:
    """(n, c, h, w) -> the bytes of that many channels in a layout."""
    held = allocate(channels * layout.plane)
    table = pixels(layout).reshape(-1)
    flat = x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1)
    view = held.view(np.float32).reshape(channels, -1)
    view[: x.shape[1], : table.size] = np.where(table >= 0, flat[:, table], 0)
    return held


def from_tiles(held: np.ndarray, layout: Layout, channels: int) -> np.ndarray:
    """The inverse of `to_tiles`."""
    view = held.view(np.float32)[: channels * layout.plane // 4].reshape(channels, -1)[:, places(layout)]
    return view.reshape(channels, layout.images, layout.height, layout.width).transpose(1, 0, 2, 3)


def run(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    shape: packing.Shape,
    choice: packing.Choice,
    *,
    residual: np.ndarray | None = None,
    relu: bool = False,
    lanes: int = 16,
    threads: int = 1,
    extra_halo: int = 0,
    allocate: Callable[[int], np.ndarray] = memory.buffer,
) -> np.ndarray:
    """The convolution's output by the kernel of this choice, its strips no larger than the tile."""
    n, c_in, height, width = x.shape
    c_out, _, kh, kw = weight.shape
    y = Layout.of(shape.output(height, kh, 0), shape.output(width, kw, 1), lanes=lanes, images=n)
    source = y.before(shape.stride, height, width).with_halo(shape.halo((kh, kw)) + extra_halo)
    y = y.with_halo(extra_halo)
    r = y.with_halo(2) if residual is not None else None
    choice = packing.Choice(
        min(choice.rows, y.tile[0]), min(choice.columns, y.tile[1]), choice.channels, choice.together, choice.unroll
    )
    lists = packing.pack(weight, shape, source, choice, threads)
    table = packing.strips(source, y, r, choice, shape)
    k = packing.kernel(source, y, r, choice, shape)
    many = -(-c_out // 4) * 4
    held_x = to_tiles(x, source, c_in, allocate)
    held_y = allocate(many * y.plane)
    held_r = to_tiles(residual, r, many, allocate) if r is not None else None
    packing.check_bounds(lists, table, k, (held_x.size, held_y.size, held_r.size if held_r is not None else None))
    padded = np.zeros(many, dtype=np.float32)
    padded[:c_out] = bias
    data = [memory.aligned(a) for a in (padded, lists.entries, lists.records, lists.segments, table)]
    low = 0.0 if relu else -INFINITY
    given = held_r if held_r is not None else 0
    arguments = memory.slots([held_x, held_y, given, *data, len(table), lists.blocks, low, INFINITY])
    for thread in range(threads):
        memory.call(jit.address(convolution.emit(k)), arguments, thread, threads)
    return from_tiles(held_y, y, c_out)


def expected(x, weight, bias, shape, residual=None, relu=False) -> np.ndarray:
    """The same by torch in float64."""
    args = [torch.from_numpy(a).double() for a in (x, weight, bias)]
    y = conv2d(*args, shape.stride, shape.padding, shape.dilation, shape.groups)
    if residual is not None:
        y = y + torch.from_numpy(residual)
    return (y.relu() if relu else y).numpy()


def error(got: np.ndarray, want: np.ndarray) -> float:
    """max |got - want| / max |want|; of terms about 1, rounding stays where a rectifier leaves less than that."""
    assert got.size > 0 and got.shape == want.shape and np.isfinite(want).all()
    return float(np.abs(got - want).max() / max(np.abs(want).max(), 0.5)) if np.isfinite(got).all() else INFINITY
