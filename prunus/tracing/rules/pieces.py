"""Pieces of tensors, joins of them, and channels moved into space and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from prunus.tracing.labels import NONE, stack
from prunus.tracing.rules.base import rule, space
from prunus.tracing.tracer import Dim, Dims, Tracer


@rule("slice")
def slice_(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Some rows of one dimension."""
    x = args[0]
    d = (args[1] if len(args) > 1 else 0) % x.dim()
    step = args[4] if len(args) > 4 else 1
    dims, n = list(t.of(x)), x.shape[d]
    if dims[d].labels is None:
        return [dims]
    if step != 1:
        dims[d] = t.fix(dims[d], "the code takes every n-th index of it")
        return [dims]
    start, stop, _ = slice(*(args[2:4] if len(args) > 3 else (args[2], None))).indices(n)
    whole = dims[d]
    for position, value, rows in ((2, start, (0, start)), (3, stop, (0, stop))):
        given = args[position] if len(args) > position else None
        if given is not None and given < 0 < value:  # counted from the end: the end stays
            t.fix(Dim(whole.labels[value:]), "the code counts indices from its end")
        elif given is not None and 0 < given <= n:
            t.fact((position,), given, whole, rows)
    if (start, stop) != (0, n):
        dims[d] = Dim(whole.labels[start:stop])
    return [dims]


@rule("select", "unbind")
def select(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """One index of a dimension: that dimension is fixed and gone."""
    dims = list(t.of(args[0]))
    d = (args[1] if len(args) > 1 else 0) % len(dims)
    picked = dims.pop(d)
    for out in outs:
        t.fix_when_read(out, picked, "the code picks single indices of it")
    return [list(dims) for _ in outs]


@rule("split", "unsafe_split", "chunk", "unsafe_chunk", "tensor_split")
def split(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Pieces of one size, or a number of pieces: equal pieces stay equal."""
    x = args[0]
    d = (args[2] if len(args) > 2 else 0) % x.dim()
    dims, sizes = list(t.of(x)), [out.shape[d] for out in outs]
    whole = dims[d]
    if whole.labels is None or len(outs) == 1:
        return [list(dims) for _ in outs]
    if len(set(sizes)) > 1 or not isinstance(args[1], int):
        t.fix(whole, "the code splits it into unequal parts of one size")
        return [[*dims[:d], Dim(), *dims[d + 1 :]] for _ in outs]
    major, minor = t.labels.split(whole.labels, len(outs), sizes[0])
    t.fix(Dim(major), "the code splits it into a fixed number of equal parts")
    if t.call.name in ("split", "unsafe_split"):
        t.fact((1,), args[1], Dim(minor))
    pieces = np.split(whole.labels, len(outs))
    return [[*dims[:d], Dim(piece), *dims[d + 1 :]] for piece in pieces]


@rule("split_with_sizes", "unsafe_split_with_sizes")
def split_with_sizes(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Pieces of given sizes."""
    d = (args[2] if len(args) > 2 else 0) % args[0].dim()
    dims = list(t.of(args[0]))
    whole, pieces, start = dims[d], [], 0
    for i, size in enumerate(args[1]):
        piece = Dim(None if whole.labels is None else whole.labels[start : start + size])
        pieces.append([*dims[:d], piece, *dims[d + 1 :]])
        t.fact((1, i), size, piece)
        start += size
    return pieces


@rule("cat", "concat", "concatenate")
def cat(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Rows of one dimension after each other; the other dimensions are cut alike."""
    d = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % outs[0].dim()
    tensors = [x for x in args[0] if x.dim() == outs[0].dim()]  # an empty 1-d tensor is allowed and ignored
    dims = []
    for k in range(outs[0].dim()):
        parts = [t.of(x)[k] for x in tensors]
        if k == d:
            dims.append(_rows(parts, [x.shape[d] for x in tensors]))
            continue
        for other in parts[1:]:
            t.unify(parts[0], other)
        dims.append(Dim(parts[0].labels))
    return [dims]


def _rows(parts: Dims, sizes: Sequence[int]) -> Dim:
    """Dimensions after each other."""
    if all(part.labels is None for part in parts):
        return Dim()
    holes = np.full((max(sizes), 1), NONE)
    return Dim(stack([holes[:n] if p.labels is None else p.labels for p, n in zip(parts, sizes)]))


@rule("stack")
def stack_(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Equal tensors side by side in a new dimension."""
    d = (args[1] if len(args) > 1 else 0) % outs[0].dim()
    dims = [Dim(x.labels) for x in t.of(args[0][0])]
    for x in args[0][1:]:
        for a, b in zip(dims, t.of(x)):
            t.unify(a, b)
    dims.insert(d, Dim())
    return [dims]


@rule("constant_pad_nd")
def pad(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Constant rows before and after: units of their own, which follow what they meet."""
    x, amounts = args[0], args[1]
    dims = list(t.of(x))
    for i in range(len(amounts) // 2):
        d, before, after = x.dim() - 1 - i, amounts[2 * i], amounts[2 * i + 1]
        if dims[d].labels is None or (before == 0 and after == 0):
            continue
        if before < 0 or after < 0:
            dims[d] = t.fix(dims[d], "the code crops it by padding")
            continue
        n = outs[0].shape[d]
        rows = [t.labels.new(before)[:, None], dims[d].labels, t.labels.new(after)[:, None]]
        dims[d] = Dim(stack([r for r in rows if r is not None]))
        t.fact((1, 2 * i), before, dims[d], (0, before))
        t.fact((1, 2 * i + 1), after, dims[d], (n - after, n))
    return [dims]


@rule("slice_scatter", "select_scatter")
def slice_scatter(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Some rows of one dimension are replaced; it stays, the others are cut with the source's."""
    dims, source = list(t.of(args[0])), list(t.of(args[1]))
    d = (args[2] if len(args) > 2 else 0) % len(dims)
    if t.call.name == "select_scatter":
        source.insert(d, Dim())
    for k, (a, b) in enumerate(zip(dims, source)):
        if k == d:
            t.fix(a, "the code writes single indices of it")
            t.fix(b, "the code writes single indices of it")
        else:
            t.unify(a, b)
    dims[d] = Dim()
    return [dims]


@rule("pixel_shuffle")
def pixel_shuffle(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """(C*r*r, H, W) -> (C, H*r, W*r): the r*r positions of a channel are cut together."""
    dims, square = list(t.of(args[0])), args[1] ** 2
    channel, position = t.labels.split(dims[-3].labels, args[0].shape[-3] // square, square)
    t.fix(Dim(position), "pixels are made of it")
    return [[*dims[:-3], Dim(channel), space(t, dims[-2]), space(t, dims[-1])]]


@rule("pixel_unshuffle")
def pixel_unshuffle(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """(C, H*r, W*r) -> (C*r*r, H, W): every channel becomes r*r."""
    dims, square = list(t.of(args[0])), args[1] ** 2
    channels = t.labels.merge(dims[-3].labels, args[0].shape[-3], None, square)
    return [[*dims[:-3], Dim(channels), space(t, dims[-2]), space(t, dims[-1])]]


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """(g * w, ...) -> (w * g, ...)."""
    dims, groups = list(t.of(args[0])), args[1]
    width = args[0].shape[1] // groups
    major, minor = t.labels.split(dims[1].labels, groups, width)
    t.fact((1,), groups, Dim(major))
    return [[dims[0], Dim(t.labels.merge(minor, width, major, groups)), *dims[2:]]]


@rule("im2col")
def im2col(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """(N, C, H, W) -> (N, C * kernel, L): every channel becomes one row a kernel position."""
    dims, kernel = t.of(args[0]), outs[0].shape[-2] // args[0].shape[-3]
    for dim in dims[-2:]:
        space(t, dim)
    return [[*dims[:-3], Dim(t.labels.merge(dims[-3].labels, args[0].shape[-3], None, kernel)), Dim()]]


@rule("col2im")
def col2im(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """(N, C * kernel, L) -> (N, C, H, W): sums over kernel positions."""
    dims, channels = t.of(args[0]), outs[0].shape[-3]
    major, minor = t.labels.split(dims[-2].labels, channels, args[0].shape[-2] // channels)
    t.fix(Dim(minor), "it is a kernel position")
    space(t, dims[-1])
    return [[*dims[:-2], Dim(major), Dim(), Dim()]]
