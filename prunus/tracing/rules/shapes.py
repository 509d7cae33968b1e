"""Views, permutations, pieces and joins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from prunus.tracing.labels import NONE, stack
from prunus.tracing.rules.base import rule, space
from prunus.tracing.tracer import Dim, Dims, Tracer


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten")
def reshape(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Merge and split, block by block of equal product."""
    old, new = list(args[0].shape), list(outs[0].shape)
    if args[0].dtype != outs[0].dtype:  # the same memory read as another type
        for dim in t.of(args[0]):
            t.fix(dim, "the code reads its memory as another type")
        return [[Dim() for _ in new]]
    before, after = t.of(args[0]), []
    if 0 in old:
        return [[Dim() for _ in new]]
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [i], [j]
        m, n = (old[i] if i < len(old) else 1), (new[j] if j < len(new) else 1)
        i, j = i + 1, j + 1
        while m != n:
            if m < n:
                m, left, i = m * old[i], [*left, i], i + 1
            else:
                n, right, j = n * new[j], [*right, j], j + 1
        block = [k for k in left if k < len(old)]
        after += _reblock(
            t, [before[k] for k in block], [old[k] for k in block], [new[k] for k in right if k < len(new)]
        )
    if len(args) > 1 and isinstance(args[1], (list, tuple)) and len(args[1]) == len(new):
        for d, size in enumerate(args[1]):
            t.fact((1, d), size, after[d])
    return [after]


def _reblock(t: Tracer, dims: Dims, old: list[int], new: list[int]) -> Dims:
    """Dimensions of sizes `old` laid out again as `new`, with the same product."""
    if len(dims) == 1 and len(new) == 1:
        return [dims[0]]
    merged, size = None, 1
    for dim, n in zip(dims, old):
        merged, size = t.labels.merge(merged, size, dim.labels, n), size * n
    out = []
    for n in new[:-1]:
        size //= n
        head, merged = t.labels.split(merged, n, size)
        out.append(Dim(head))
    return [*out, Dim(merged)] if new else []


@rule("permute", "t", "transpose", "numpy_T", "swapaxes")
def permute(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Dimensions in another order."""
    dims = t.of(args[0])
    if len(args) == 3:
        order = list(range(len(dims)))
        a, b = args[1] % len(dims), args[2] % len(dims)
        order[a], order[b] = order[b], order[a]
    elif len(args) == 2:
        order = [d % len(dims) for d in args[1]]
    else:
        order = list(range(len(dims)))[::-1]
    return [[dims[d] for d in order]]


@rule("unsqueeze")
def unsqueeze(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """A dimension of size one more."""
    dims = list(t.of(args[0]))
    dims.insert(args[1] % outs[0].dim(), Dim())
    return [dims]


@rule("squeeze")
def squeeze(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Dimensions of size one less."""
    x = args[0]
    which = range(x.dim()) if len(args) == 1 else [args[1]] if isinstance(args[1], int) else args[1]
    gone = {d % max(x.dim(), 1) for d in which if x.shape[d] == 1}
    if outs[0] is x:  # in place: x has its new shape already
        for dim in t.of(x):
            t.fix(dim, "the code squeezes it in place")
        return [[Dim() for _ in x.shape]]
    if len(args) == 1:  # a dimension that is cut down to one would go too
        for dim in t.of(x):
            if dim.labels is not None:
                t.fix(Dim(dim.labels[:2]), "squeeze() needs two of it")
    return [[dim for d, dim in enumerate(t.of(x)) if d not in gone]]


@rule("expand")
def expand(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Repeated along new or size-one dimensions: those fit whatever they meet."""
    x, out = args[0], outs[0]
    dims, missing = t.of(x), out.dim() - x.dim()
    after = []
    for d, n in enumerate(out.shape):
        kept = d >= missing and x.shape[d - missing] == n
        after.append(dims[d - missing] if kept else t.fresh(n))
        t.fact((1, d), args[1][d], after[d])
    return [after]


@rule("slice")
def slice_(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Some rows of one dimension."""
    x = args[0]
    d = (args[1] if len(args) > 1 else 0) % x.dim()
    step = args[4] if len(args) > 4 else 1
    dims, n = list(t.of(x)), x.shape[d]
    if dims[d].labels is None or outs[0].shape[d] == n:
        return [dims]
    if step != 1:
        dims[d] = t.fix(dims[d], "the code takes every n-th index of it")
        return [dims]
    start, stop, _ = slice(*(args[2:4] if len(args) > 3 else (args[2], None))).indices(n)
    whole = dims[d]
    for position, value, rows in ((2, start, (0, start)), (3, stop, (0, stop))):
        if 0 < value < n and len(args) > position:
            t.fact((position,), args[position], whole, rows)
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


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk")
def split(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Pieces of one dimension; equal pieces stay equal."""
    x = args[0]
    d = (args[2] if len(args) > 2 else kwargs.get("dim", 0)) % x.dim()
    dims, sizes = list(t.of(x)), [out.shape[d] for out in outs]
    whole = dims[d]
    if whole.labels is None or len(outs) == 1:
        return [list(dims) for _ in outs]
    if isinstance(args[1], int):
        if len(set(sizes)) > 1:
            t.fix(whole, "the code splits it into unequal parts of one size")
            return [[*dims[:d], Dim(), *dims[d + 1 :]] for _ in outs]
        major, minor = t.labels.split(whole.labels, len(outs), sizes[0])
        t.fix(Dim(major), "the code splits it into a fixed number of equal parts")
        t.fact((1,), args[1], Dim(minor))
    pieces, start = [], 0
    for i, n in enumerate(sizes):
        piece = Dim(whole.labels[start : start + n])
        pieces.append([*dims[:d], piece, *dims[d + 1 :]])
        if not isinstance(args[1], int):
            t.fact((1, i), args[1][i], piece)
        start += n
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


@rule("index_select")
def index_select(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """A selection: what is selected from stays, the selection itself can be narrowed."""
    x, d, index = args[0], args[1] % args[0].dim(), args[2]
    dims = list(t.of(x))
    t.fix(dims[d], "a channel selection reads it by index")
    chosen = t.of(index)[0] if index.dim() == 1 else Dim()
    t.role(chosen, "index")
    dims[d] = Dim(chosen.labels)
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


@rule("repeat")
def repeat(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Copies after each other: every unit appears in each; copies of a dimension of size one fit what they meet."""
    x, times = args[0], args[1]
    missing = len(times) - x.dim()
    dims = [Dim()] * missing + t.of(x)
    sizes = [1] * missing + list(x.shape)
    after = []
    for d, (dim, n, many) in enumerate(zip(dims, sizes, times)):
        if n == 1:
            after.append(t.fresh(many))
            t.fact((1, d), many, after[d])
        else:
            after.append(dim if many == 1 else Dim(t.labels.merge(None, many, dim.labels, n)))
    return [after]


@rule("unfold")
def unfold(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Windows along one dimension, laid out in a new last one."""
    dims = list(t.of(args[0]))
    dims[args[1]] = space(t, dims[args[1]])
    return [[*dims, Dim()]]


@rule("diagonal")
def diagonal(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Two dimensions read together by position."""
    dims = t.of(args[0])
    a, b = (d % len(dims) for d in (args[2:4] if len(args) > 3 else (0, 1)))
    for d in (a, b):
        t.fix(dims[d], "the code counts positions along it")
    return [[*(dim for d, dim in enumerate(dims) if d not in (a, b)), Dim()]]


@rule("index", "_unsafe_index")
def index(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """x[i, :, j ...] with index tensors: the dimensions that are looked up stay, the others pass."""
    dims, looked, kept = _looked_up(t, args[0], args[1])
    for d in looked:
        t.fix(dims[d], "the code picks single indices of it")
    extra = outs[0].dim() - len(kept)
    first = looked[0] if looked and looked == list(range(looked[0], looked[-1] + 1)) else 0
    at = sum(d < first for d in kept)
    passed = [dims[d] for d in kept]
    return [[*passed[:at], *(Dim() for _ in range(extra)), *passed[at:]]]


@rule("index_put", "_unsafe_index_put", "_index_put_impl")
def index_put(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """x[i, :, j ...] = values: the dimensions that are looked up stay, the others are cut with the values'."""
    dims, looked, kept = _looked_up(t, args[0], args[1])
    for d in looked:
        t.fix(dims[d], "the code picks single indices of it")
    values = t.of(args[2])
    behind = [d for d in kept if not looked or d > looked[-1]]
    for a, d in zip(values[::-1], behind[::-1]):
        t.unify(a, dims[d])
    if len(behind) < len(kept) or len(values) > len(behind):
        for d in kept:
            if d not in behind:
                t.fix(dims[d], "the code writes single indices beside it")
    return [dims]


def _looked_up(t: Tracer, x: Tensor, indices: Sequence[Tensor | None]) -> tuple[Dims, list[int], list[int]]:
    """The dimensions of x, those that index tensors look up (a mask looks up several), and the others."""
    looked, d = [], 0
    for tensor in indices:
        wide = tensor.dim() if tensor is not None and tensor.dtype.is_floating_point is False and _mask(tensor) else 1
        if tensor is not None:
            looked += range(d, d + wide)
            for dim in t.of(tensor):
                t.fix(dim, "it is an index")
        d += wide
    return list(t.of(x)), looked, [k for k in range(x.dim()) if k not in looked]


def _mask(tensor: Tensor) -> bool:
    return str(tensor.dtype) in ("torch.bool", "torch.uint8")


@rule("gather")
def gather(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """out[i, j] = x[i, index[i, j]]: the dimension that is looked up stays."""
    x, d, where = args[0], args[1] % max(args[0].dim(), 1), args[2]
    return [_by_index(t, x, d, where)]


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """x[i, index[i, j]] = values[i, j]: the dimension that is written to stays."""
    x, d, where = args[0], args[1] % max(args[0].dim(), 1), args[2]
    through = _by_index(t, x, d, where)
    if isinstance(args[3], Tensor):
        for a, b in zip(through, t.of(args[3])):
            t.unify(a, b)
    return [list(t.of(x))]


def _by_index(t: Tracer, x: Tensor, d: int, where: Tensor) -> Dims:
    dims, of = t.of(x), t.of(where)
    t.fix(dims[d], "the code picks single indices of it")
    for k, (a, b) in enumerate(zip(dims, of)):
        if k != d and x.shape[k] == where.shape[k]:
            t.unify(a, b)
        elif k != d:
            t.fix(a, "the code picks single indices of it")
    return [Dim(dim.labels) for dim in of]


@rule("index_add", "index_copy", "index_fill", "index_reduce")
def index_add(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """x[index] += values along one dimension, which stays."""
    dims, d = list(t.of(args[0])), args[1] % args[0].dim()
    t.fix(dims[d], "the code picks single indices of it")
    if isinstance(args[3], Tensor) and args[3].dim() == len(dims):
        for k, (a, b) in enumerate(zip(dims, t.of(args[3]))):
            if k == d:
                t.fix(b, "the code picks single indices of it")
            else:
                t.unify(a, b)
    dims[d] = Dim()
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


@rule("as_strided")
def as_strided(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Another memory layout of the same sizes is the same tensor; anything else is not followed."""
    dims = list(t.of(args[0]))
    if tuple(args[0].shape) != tuple(outs[0].shape):
        for dim in dims:
            t.fix(dim, "the code reads its memory by strides")
        return [[Dim() for _ in outs[0].shape]]
    for d, size in enumerate(args[1]):
        t.fact((1, d), size, dims[d])
    return [dims]
