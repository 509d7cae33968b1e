"""How labels move through each family of operators.

A rule takes the tracer and the call, unifies what must be cut alike, fixes what cannot be cut, notes the integers that have
to follow a cut, and returns the labelled dimensions of every output.  It knows operators, never modules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from prunus.tracing.labels import NONE, stack
from prunus.tracing.tracer import Dim, Dims, Rule, Tracer

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register one rule for a family of ATen operators (names without overload, in-place variants included)."""

    def put(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return put


def find(func: Any) -> Rule | None:
    """The rule of an ATen overload: its family's, else that of pointwise operators if it is one, else None."""
    name = func._schema.name.removeprefix("aten::")
    found = RULES.get(name) or RULES.get(name.rstrip("_"))
    if found is None and torch.Tag.pointwise in func.tags:
        return pointwise
    return found


# ---- elementwise ---------------------------------------------------------------------------------------------------


@rule("copy", "where", "hardswish", "masked_fill", "fill", "zero", "relu6", "native_dropout", "dropout")
def pointwise(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Operands are broadcast against each other: dimensions of equal size are cut alike."""
    operands = [a for a in [*args, *kwargs.values()] if isinstance(a, Tensor)]
    return [_broadcast(t, operands, out) for out in outs]


def _broadcast(t: Tracer, operands: list[Tensor], out: Tensor) -> Dims:
    dims = []
    for back in range(out.dim(), 0, -1):
        n = out.shape[-back]
        meet = [t.of(x)[-back] for x in operands if x.dim() >= back and x.shape[-back] == n and n > 1]
        for other in meet[1:]:
            t.unify(meet[0], other)
        dims.append(Dim(meet[0].labels) if meet else Dim())
    return dims


@rule("clone", "detach", "alias", "lift_fresh", "lift_fresh_copy", "_to_copy", "contiguous")
def same(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """The same tensor again."""
    return [t.of(args[0])]


@rule("zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like")
@rule("new_zeros", "new_ones", "new_full", "new_empty", "empty_strided", "new_empty_strided")
def constant(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """A constant of any size fits whatever it meets: units of its own, which follow."""
    return [[t.fresh(n) for n in outs[0].shape]]


# ---- shapes --------------------------------------------------------------------------------------------------------


@rule("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten")
def reshape(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Merge and split, block by block of equal product."""
    old, new = list(args[0].shape), list(outs[0].shape)
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
        after += _reblock(t, [before[k] for k in block], [old[k] for k in block], [new[k] for k in right if k < len(new)])
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
    t.fix(dims.pop(d), "the code picks single indices of it")
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
        major, _ = t.labels.split(whole.labels, len(outs), sizes[0])
        t.fix(Dim(major), "the code splits it into a fixed number of equal parts")
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
    holes = torch.full((max(sizes), 1), NONE).numpy()
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
    return [[*dims[:-3], Dim(channel), _space(t, dims[-2]), _space(t, dims[-1])]]


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


# ---- contractions --------------------------------------------------------------------------------------------------


@rule("convolution", "_convolution")
def convolution(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Convolutions of every kind; with groups, both sides divide into (group, position in the group)."""
    x, weight, bias, groups, transposed = args[0], args[1], args[2], args[8], args[6]
    unbatched = x.dim() == weight.dim() - 1
    xs, ws = t.of(x), t.of(weight)
    source, left = xs[0 if unbatched else 1], ws[0]
    channels = x.shape[0 if unbatched else 1]
    for dim in xs[(1 if unbatched else 2) :]:
        _space(t, dim)
    for dim in ws[2:]:
        t.fix(dim, "it is a kernel position")
    t.scales(ws[0], ws[1])
    if groups == 1:
        produced, consumed = (ws[1], ws[0]) if transposed else (ws[0], ws[1])
        t.unify(source, consumed)
        t.role(produced, "out")
        t.role(consumed, "in")
    else:
        produced = _grouped(t, source, channels, ws, weight, groups, transposed)
    if bias is not None:
        t.unify(produced, t.of(bias)[0])
        t.role(t.of(bias)[0], "bias")
    out = [Dim(produced.labels), *(Dim() for _ in range(weight.dim() - 2))]
    return [out if unbatched else [xs[0], *out]]


def _grouped(t: Tracer, source: Dim, channels: int, ws: Dims, weight: Tensor, groups: int, transposed: bool) -> Dim:
    """Unify the groups, and the positions within, of both sides; returns the produced channels."""
    rows = weight.shape[0]
    row_group, row_position = (Dim(x) for x in t.labels.split(ws[0].labels, groups, rows // groups))
    x_group, x_position = (Dim(x) for x in t.labels.split(source.labels, groups, channels // groups))
    t.unify(x_group, row_group)
    t.fact((8,), groups, row_group if row_group.labels is not None else Dim())
    depthwise = groups == channels == rows
    t.role(ws[0], "depthwise" if depthwise else "in" if transposed else "out")
    t.role(ws[1], "out" if transposed else "in")
    if transposed:
        t.unify(x_position, row_position)
        return Dim(t.labels.merge(row_group.labels, groups, ws[1].labels, weight.shape[1]))
    t.unify(x_position, ws[1])
    return ws[0]


def _space(t: Tracer, dim: Dim) -> Dim:
    return t.fix(dim, "it is a position in space or time")


@rule("mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "dot", "addmv")
def matmul(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Matrix products: the contracted dimensions are cut alike."""
    added, (a, b) = (args[0], args[1:3]) if len(args) > 2 else (None, args[:2])
    left, right = t.of(a), t.of(b)
    t.unify(left[-1], right[0 if b.dim() < 3 else -2])
    t.role(right[0 if b.dim() < 3 else -2], "in")
    t.role(left[-1], "in")
    t.role(left[0], "out")
    columns = right[-1] if b.dim() > 1 else None
    dims = list(left[:-1])
    if a.dim() == 3:
        t.unify(left[0], right[0])
    if columns is not None:
        t.role(columns, "out")
        dims.append(Dim(columns.labels))
    t.scales(*left, *([columns] if columns is not None else []))
    if added is not None:
        for back, (dim, other) in enumerate(zip(t.of(added)[::-1], dims[::-1]), 1):
            t.role(dim, "bias")
            if added.shape[-back] == outs[0].shape[-back] > 1:
                t.unify(other, dim)
    return [dims]


# ---- normalisation, pooling, reductions ----------------------------------------------------------------------------


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
@rule("batch_norm", "miopen_batch_norm", "_batch_norm_no_update", "_batch_norm_with_update")
def batch_norm(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Every channel by itself, in evaluation mode."""
    dims, frozen_statistics = list(t.of(args[0])), args[3] is not None and args[5] is False
    for operand, role in zip(args[1:5], ("norm_scale", "norm_shift", "stat", "stat")):
        if operand is not None:
            t.unify(dims[1], t.of(operand)[0])
            t.role(t.of(operand)[0], role)
    if not frozen_statistics:
        for d in (0, *range(2, len(dims))):
            dims[d] = t.fix(dims[d], "statistics are taken over it")
    return [[Dim(d.labels) for d in dims], *([Dim() for _ in o.shape] for o in outs[1:])]


@rule("native_layer_norm", "native_group_norm", "_fused_rms_norm")
def layer_norm(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Statistics over the channels: removing one would change the others."""
    x, dims = args[0], list(t.of(args[0]))
    over = range(x.dim() - len(args[1]), x.dim()) if isinstance(args[1], (list, tuple)) else range(1, x.dim())
    for operand in args[1:]:
        if isinstance(operand, Tensor):
            for dim in t.of(operand):
                t.fix(dim, "statistics are taken over it")
    for d in over:
        dims[d] = t.fix(dims[d], "statistics are taken over it")
    return [dims, *([Dim() for _ in o.shape] for o in outs[1:])]


def _spatial(number: int) -> Rule:
    """The last `number` dimensions are space; the others pass."""

    def pool(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
        dims = list(t.of(args[0]))
        for d in range(len(dims) - number, len(dims)):
            dims[d] = _space(t, dims[d])
        return [list(dims) for _ in outs]

    return pool


for _n in (1, 2, 3):
    rule(f"max_pool{_n}d_with_indices", f"max_pool{_n}d", f"avg_pool{_n}d", f"adaptive_avg_pool{_n}d")(_spatial(_n))
    rule(f"_adaptive_avg_pool{_n}d", f"adaptive_max_pool{_n}d", f"reflection_pad{_n}d")(_spatial(_n))
    rule(f"replication_pad{_n}d", f"mkldnn_max_pool{_n}d", f"upsample_nearest{_n}d")(_spatial(_n))
    rule(f"_upsample_nearest_exact{_n}d")(_spatial(_n))
rule("upsample_linear1d")(_spatial(1))
rule("upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa")(_spatial(2))
rule("upsample_trilinear3d")(_spatial(3))


@rule("mean", "sum", "amax", "amin", "max", "min", "var", "std", "prod", "any", "all", "logsumexp", "argmax", "norm")
@rule("linalg_vector_norm")
def reduce(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """What is reduced over cannot be cut; the rest passes."""
    x, dims = args[0], list(t.of(args[0]))
    rest = [a for a in args[1:] if isinstance(a, (int, list, tuple)) and not isinstance(a, bool)]
    which = kwargs.get("dim", rest[0] if rest else None)
    which = range(x.dim()) if which is None or which == [] else [which] if isinstance(which, int) else which
    gone = {d % max(x.dim(), 1) for d in which}
    for d in gone:
        if dims:
            t.fix(dims[d], "values are reduced over it")
    kept = [dim for d, dim in enumerate(dims) if d not in gone]
    keepdim = [Dim() if d in gone else dim for d, dim in enumerate(dims)]
    return [list(keepdim if out.dim() == x.dim() else kept if out.dim() == len(kept) else []) for out in outs]


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "cumsum", "cumprod", "sort", "flip", "roll")
def along(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Something is computed along one dimension, which cannot be cut; the rest passes."""
    x, dims = args[0], list(t.of(args[0]))
    along_dim = [a for a in args[1:] if isinstance(a, (int, list, tuple)) and not isinstance(a, bool)]
    which = along_dim[-1] if along_dim else -1
    for d in [which] if isinstance(which, int) else range(x.dim()):
        dims[d] = t.fix(dims[d], "something is computed along it")
    same_shape = [o.dim() == x.dim() for o in outs]
    return [list(dims) if same else [Dim() for _ in o.shape] for same, o in zip(same_shape, outs)]


@rule("glu")
def glu(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Two halves, one gating the other: they are cut alike."""
    dims = list(t.of(args[0]))
    d = (args[1] if len(args) > 1 else -1) % len(dims)
    half = outs[0].shape[d]
    if dims[d].labels is not None:
        major, minor = t.labels.split(dims[d].labels, 2, half)
        t.fix(Dim(major), "one half gates the other")
        dims[d] = Dim(minor)
    return [dims]


@rule("embedding")
def embedding(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Rows are looked up and stay; the width passes."""
    rows, width = t.of(args[0])
    t.fix(rows, "rows are looked up in it")
    t.role(width, "out")
    return [[*t.of(args[1]), Dim(width.labels)]]
