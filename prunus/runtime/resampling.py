"""Pixels made of others, as nodes: windows, pads, pieces, and pictures of another size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from prunus.runtime.graph import INFINITY, Node, Ref
from prunus.runtime.limits import BEYOND, MIXED, TAPS
from prunus.runtime.operators import Call, pair, reads, strided

LARGEST = 1 << 25  # pixels that may be made to see how a picture is resized


def pick(call: Call, x: Any, axis: int, index: Sequence[int]) -> Node:
    """These of the channels, rows or columns, -1 for zeros."""
    kept = [list(range(n)) for n in call.shape_of(x)[1:]]
    kept[axis - 1] = list(index)
    return call.node("pick", [x], {"kept": kept})


@reads("max_pool2d", "avg_pool2d")
def _pool(call: Call, x: Any, kernel: Any, stride: Any = (), padding: Any = 0, *rest: Any) -> Node | int | None:
    if len(call.shape) != 4:
        return None
    most, kernel, padding = "max" in call.name, pair(kernel), pair(padding)
    if kernel[0] * kernel[1] > TAPS:
        return None
    stride = pair(stride) if stride else kernel
    numbers: dict[str, Any] = {"of": "max" if most else "mean", "kernel": kernel, "padding": padding}
    if most:
        if rest and pair(rest[0]) != [1, 1]:
            return None
        if padding == [0, 0]:
            x, numbers["padding"] = _without_pads(call, x)
    else:
        _, inside, divisor = list(rest) + [False, True, None][len(rest) :]
        sizes = call.shape_of(x)[2:]
        counts = [
            _counts(*axis, inside=not inside)
            for axis in zip(sizes, kernel, stride, padding, call.shape[2:], strict=True)
        ]
        if divisor is not None:
            counts = [[divisor] * len(counts[0]), [1] * len(counts[1])]
        if any(n != k for axis, k in zip(counts, kernel) for n in axis):
            numbers["counts"] = counts
    if stride[0] != stride[1] and "counts" in numbers:
        return None
    ends = [(n - 1) * s - p + k for n, s, p, k in zip(call.shape[2:], stride, numbers["padding"], kernel)]
    numbers["beyond"] = any(e > n for e, n in zip(ends, call.shape_of(x)[2:]))
    return strided(call, "pool", x, stride, numbers)


def _counts(size: int, kernel: int, stride: int, padding: int, out: int, *, inside: bool) -> list[int]:
    """What windows along an axis have in pixels, padded ones among them, or `inside` alone."""
    found = []
    for start in (i * stride - padding for i in range(out)):
        end = min(start + kernel, size + padding)
        found.append(min(end, size) - max(start, 0) if inside else end - start)
    return found


def _without_pads(call: Call, x: Ref) -> tuple[Ref, list[int]]:
    """What is before a pad that no maximum sees, and how much it puts before rows and columns."""
    node = call.nodes[x]
    if node.kind == "torch" and node.numbers["operator"].split(".")[1] in ("pad", "constant_pad_nd"):
        _, amounts, *rest = node.numbers["args"]
        value = [v for v in (*rest, *node.numbers["kwargs"].values()) if v != "constant"]
        if value == [-INFINITY] and len(amounts) == 4 and min(amounts) >= 0 and max(amounts) <= BEYOND // 2:
            return Ref(node.inputs[0]), [amounts[2], amounts[0]]
    return x, [0, 0]


@reads(
    "adaptive_avg_pool2d",
    "_adaptive_avg_pool2d",
    "upsample_nearest2d",
    "_upsample_nearest_exact2d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
)
def _resize(call: Call, x: Any, *rest: Any, **named: Any) -> Node | int | None:
    before, after = call.shape_of(x), call.shape
    adaptive = "adaptive" in call.name
    if len(before) != 4 or max(before[2:]) * after[2] * after[3] > LARGEST:
        return None
    if adaptive and after[2:] == (1, 1):
        return call.node("mean", [x])
    if adaptive and after == before:
        return x
    each = [n // m for n, m in zip(before[2:], after[2:])]
    if adaptive and each[0] == each[1] <= TAPS**0.5 and all(n % m == 0 for n, m in zip(before[2:], after[2:])):
        return call.node("pool", [x], {"of": "mean", "kernel": each, "stride": each[0], "padding": [0, 0]})
    axes = [_weights(call, before[axis], axis, rest, named) for axis in (2, 3)]
    if all(len(row) == 1 and row[0][1] == 1 for axis in axes for row in axis):
        return call.node("pick", [x], {"kept": [list(range(before[1])), *([r[0][0] for r in axis] for axis in axes)]})
    if after[0] * after[2] * after[3] * max(map(len, axes[0])) * max(map(len, axes[1])) > MIXED:
        return None
    return call.node("resize", [x], {"rows": axes[0], "columns": axes[1]})


def _weights(call: Call, size: int, axis: int, rest: Any, named: Any) -> list[list[list[float]]]:
    """Of which pixels along an axis, and how much of them, every pixel is made: seen from what single pixels give."""
    shape = [size, 1, 1, 1]
    shape[axis] = size
    made = call.target(torch.eye(size).view(shape), *rest, **named)  # (size, 1, H, W), of a picture one pixel wide
    line = made[:, 0, :, 0] if axis == 2 else made[:, 0, 0, :]
    return [[[int(i), float(column[i])] for i in column.nonzero()[:, 0]] for column in line.t()]


@reads("slice")
def _slice(call: Call, x: Any, axis: Any = 0, start: Any = None, end: Any = None, step: Any = 1) -> Node | int | None:
    shape = call.shape_of(x)
    if shape == call.shape:
        return x
    return pick(call, x, axis % 4, range(shape[axis])[start:end:step]) if len(shape) == 4 and axis % 4 else None


@reads("index_select")
def _index_select(call: Call, x: Any, axis: int, index: Any) -> Node | int | None:
    plain = isinstance(x, Ref) and isinstance(index, Tensor) and len(call.shape) == 4 and axis % 4
    return pick(call, x, axis % 4, (index % call.shape_of(x)[axis]).tolist()) if plain else None


@reads("index")
def _index(call: Call, x: Any, indices: Any) -> Node | int | None:
    (axis, *more) = [i for i, index in enumerate(indices) if index is not None]
    index = indices[axis]
    plain = not more and isinstance(index, Tensor) and index.dim() == 1 and not index.dtype.is_floating_point
    if not plain:
        return None
    return _index_select(call, x, axis, index.nonzero()[:, 0] if index.dtype == torch.bool else index)


@reads("flip")
def _flip(call: Call, x: Any, axes: Any) -> Node | int | None:
    return _turned(call, x, axes, lambda n, _: range(n - 1, -1, -1))


@reads("roll")
def _roll(call: Call, x: Any, by: Any, axes: Any = ()) -> Node | int | None:
    steps = dict(zip((a % 4 for a in axes), by))
    return _turned(call, x, axes, lambda n, axis: [(i - steps[axis]) % n for i in range(n)]) if axes else None


def _turned(call: Call, x: Any, axes: Any, index: Callable[[int, int], Sequence[int]]) -> Node | None:
    axes = [a % 4 for a in axes]
    if len(call.shape) != 4 or 0 in axes:
        return None
    kept = [index(n, axis) if axis in axes else range(n) for axis, n in enumerate(call.shape[1:], 1)]
    return call.node("pick", [x], {"kept": [list(k) for k in kept]})


@reads("expand", "expand_as")
def _expand(call: Call, x: Any, *_: Any) -> Node | int | None:
    before = call.shape_of(x)
    if before == call.shape:
        return x
    if len(call.shape) != 4 or len(before) != 4 or before[0] != call.shape[0]:
        return None
    return call.node(
        "pick", [x], {"kept": [[i if n > 1 else 0 for i in range(m)] for n, m in zip(before[1:], call.shape[1:])]}
    )


OUTSIDE = {  # the pixel that stands in the place of one outside of the picture
    "constant": lambda i, n: -1,
    "reflect": lambda i, n: min(abs(i), 2 * n - 2 - abs(i)) if n > 1 else 0,
    "replicate": lambda i, n: min(max(i, 0), n - 1),
    "circular": lambda i, n: i % n,
}


@reads("pad", "constant_pad_nd", "reflection_pad2d", "replication_pad2d")
def _pad(call: Call, x: Any, amounts: Any, mode: Any = "constant", value: Any = 0.0) -> Node | int | None:
    if not isinstance(mode, str):  # of constant_pad_nd: the value
        mode, value = "constant", mode
    mode = {"reflection_pad2d": "reflect", "replication_pad2d": "replicate"}.get(call.name, mode)
    if value or mode not in OUTSIDE or len(call.shape_of(x)) != 4 or len(amounts) > 6:
        return None
    kept = []
    for axis, n in zip((3, 2, 1), (*reversed(call.shape_of(x)[1:]),)):
        before, after = amounts[2 * (3 - axis) : 2 * (3 - axis) + 2] or (0, 0)
        kept.append([i if 0 <= i < n else OUTSIDE[mode](i, n) for i in range(-before, n + after)])
    return call.node("pick", [x], {"kept": kept[::-1]})
