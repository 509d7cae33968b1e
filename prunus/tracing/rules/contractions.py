"""Convolutions and matrix products: where units are produced and consumed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prunus.tracing.rules.base import bare, fix_all, passed, rule, space
from prunus.tracing.tracer import Dim, Dims, Tracer


@rule("convolution", "_convolution")
def convolution(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Convolutions of every kind; with groups, both sides divide into (group, position in the group)."""
    x, weight, bias, groups, transposed = args[0], args[1], args[2], args[8], args[6]
    unbatched = x.dim() == weight.dim() - 1
    xs, ws = t.of(x), t.of(weight)
    source = xs[0 if unbatched else 1]
    channels = x.shape[0 if unbatched else 1]
    for dim in xs[(1 if unbatched else 2) :]:
        space(t, dim)
    for dim in ws[2:]:
        t.fix(dim, "it is a kernel position")
    t.scales(ws[0], ws[1])
    if groups == 1:
        produced, consumed = (ws[1], ws[0]) if transposed else (ws[0], ws[1])
        t.unify(source, consumed)
        _contracted(t, consumed)
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
        _contracted(t, ws[0])
        return Dim(t.labels.merge(row_group.labels, groups, ws[1].labels, weight.shape[1]))
    t.unify(x_position, ws[1])
    _contracted(t, ws[1])
    return ws[0]


def _contracted(t: Tracer, *operands: Dim) -> None:
    """A sum over units is exact under silence where one operand is a parameter: its columns are zero."""
    if not any(dim.source for dim in operands):
        t.contracted(operands[0])


@rule("mm", "addmm", "bmm", "baddbmm", "mv", "dot", "vdot", "addmv", "_addmm_activation", "_sparse_addmm")
def matmul(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Matrix products: the contracted dimensions are cut alike."""
    added, (a, b) = (args[0], args[1:3]) if len(args) > 2 else (None, args[:2])
    left, right = t.of(a), t.of(b)
    inner = right[0 if b.dim() < 3 else -2]
    t.unify(left[-1], inner)
    _contracted(t, left[-1], inner)
    t.role(inner, "in")
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
        _added(t, added, dims, outs[0])
    return [dims]


def _added(t: Tracer, added: Tensor, dims: Dims, out: Tensor) -> None:
    """What is added to a product is broadcast to it."""
    for back, (dim, other) in enumerate(zip(t.of(added)[::-1], dims[::-1]), 1):
        t.role(dim, "bias")
        if added.shape[-back] == out.shape[-back] > 1:
            t.unify(other, dim)
        else:
            t.fix(dim, "it is repeated along a longer dimension")


@rule("_trilinear")
def trilinear(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Products of three tensors, each without some of the dimensions, of which some are summed over."""
    here: list[list[Dim]] = [[] for _ in range(args[0].dim() + len(args[3]))]
    for x, missing in zip(args[:3], args[3:6]):
        for place, dim in zip((d for d in range(len(here)) if d not in missing), t.of(x)):
            here[place].append(dim)
    for place, dims in enumerate(here):
        for dim in dims[1:]:
            t.unify(dims[0], dim)
        for dim in dims:
            t.role(dim, "in" if place in args[6] else "out")
        if place in args[6]:
            _contracted(t, *dims)
    t.scales(*(dims[0] for dims in here if dims))
    return [[Dim(dims[0].labels) if dims else Dim() for place, dims in enumerate(here) if place not in args[6]]]


@rule("addbmm")
def summed_products(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """(N, P) + the sum over B of (B, N, M) times (B, M, P): sums over B and M."""
    left, right = t.of(args[1]), t.of(args[2])
    t.unify(left[0], right[0])
    t.unify(left[2], right[1])
    _contracted(t, left[0], right[0])
    _contracted(t, left[2], right[1])
    t.scales(*left, right[2])
    dims = passed((left[1], right[2]))
    _added(t, args[0], dims, outs[0])
    return [dims]


@rule("addr")
def outer(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """(N, P) + a column (N,) times a row (P,)."""
    dims = passed((t.of(args[1])[0], t.of(args[2])[0]))
    _added(t, args[0], dims, outs[0])
    return [dims]


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention")
@rule("_scaled_dot_product_efficient_attention", "_scaled_dot_product_fused_attention_overrideable")
@rule("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_attention_math", "scaled_dot_product_attention")
def attention(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """softmax(q k^T) v with q: (..., H, L, E), k: (..., H', S, E), v: (..., H', S, E'); H may be a multiple of H'."""
    q, k, v = (t.of(x) for x in args[:3])
    for a, b in zip(q[:-3], k[:-3]):
        t.unify(a, b)
    t.unify(q[-1], k[-1])
    for a, b in zip(k[:-1], v[:-1]):
        t.unify(a, b)
    t.fix(k[-2], "attention runs over it")
    many, few = args[0].shape[-3], args[1].shape[-3]
    if many == few:
        t.unify(q[-3], k[-3])
    elif q[-3].labels is not None:
        shared, position = t.labels.split(q[-3].labels, few, many // few)
        t.unify(Dim(shared), k[-3])
        t.fix(Dim(position), "query heads share key heads in a fixed number")
    else:
        t.fix(k[-3], "it meets something that cannot be cut")
    t.contracted(q[-1])
    t.equal(q[-1], v[-1])  # the fused kernel takes heads of one size
    t.scales(*(dim for dim in (q[0], q[-3], q[-1]) if dim.labels is not None))
    masks = [x for x in [*args[3:], *kwargs.values()] if isinstance(x, Tensor)]
    for mask in masks:
        scores = [*q[:-1], k[-2]]
        for a, b, n in zip(t.of(mask)[::-1], scores[::-1], tuple(mask.shape)[::-1]):
            if n > 1:
                t.unify(a, b)
    out = [Dim(dim.labels) for dim in (*q[:-1], v[-1])]
    return [out, *(_like(out[:-1], args[0], o) for o in outs[1:])]


def _like(dims: Dims, q: Tensor, out: Tensor) -> Dims:
    """Statistics of every query, or the attention itself; kernels may fill them up to a larger size."""
    given = [*dims, *(Dim() for _ in range(out.dim() - len(dims)))]
    return [dim if n == m else Dim() for dim, n, m in zip(given, out.shape, (*q.shape[:-1], 0))]


@rule("_grouped_mm")
def grouped_mm(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Tokens (T, in), sorted by expert, times (experts, in, out): the experts stay."""
    x, w = t.of(args[0]), t.of(args[1])
    if len(x) != 2 or len(w) != 3:
        for operand in (*args, *kwargs.values()):
            if isinstance(operand, Tensor):
                fix_all(t, t.of(operand), "a grouped product of a form that is not followed")
        return bare(outs)
    t.fix(x[0], "the code counts positions along it")
    t.fix(w[0], "the code routes to it by number")
    offsets, bias = (kwargs.get(name, args[at] if len(args) > at else None) for name, at in (("offs", 2), ("bias", 3)))
    if offsets is not None:
        t.fix(t.of(offsets)[0], "the code routes to it by number")
    if bias is not None:
        t.unify(t.of(bias)[-1], w[2])
        fix_all(t, t.of(bias)[:-1], "the code routes to it by number")
    t.unify(x[1], w[1])
    _contracted(t, x[1], w[1])
    t.role(w[1], "in")
    t.role(w[2], "out")
    t.scales(x[1], w[2])
    return [[Dim(), Dim(w[2].labels)]]


@rule("torchvision::deform_conv2d")
def deformable(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """A convolution at places that are shifted by an input of its own; with groups, channels stay."""
    x, weight = t.of(args[0]), t.of(args[1])
    if args[11] == args[12] == 1:
        t.unify(x[1], weight[1])
    else:
        fix_all(t, (x[1], weight[0], weight[1]), "a grouped product of a form that is not followed")
    _contracted(t, weight[1])
    t.role(weight[0], "out")
    t.role(weight[1], "in")
    t.role(t.of(args[4])[0], "bias")
    t.unify(weight[0], t.of(args[4])[0])
    for shift in args[2:4]:  # offsets, and weights of every place
        if shift.shape[0] == args[0].shape[0]:  # without weights an empty tensor stands for them
            t.unify(x[0], t.of(shift)[0])
        fix_all(t, t.of(shift)[1:], "it says where a convolution reads")
    for dim in (*x[2:], *weight[2:]):
        space(t, dim)
    return [[*passed((x[0], weight[0])), Dim(), Dim()]]


@rule("mkldnn_rnn_layer")
def recurrent(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """A whole recurrent layer: x (T, N, C) with (4H, C) and (4H, H); what it reads can be cut, its state stays."""
    x, weight = t.of(args[0]), t.of(args[1])
    t.unify(x[2], weight[1])
    _contracted(t, weight[1])
    t.role(weight[0], "out")
    t.role(weight[1], "in")
    t.scales(x[2])
    for dims in (x[:2], weight[:1], *(t.of(a) for a in args[2:] if isinstance(a, Tensor))):
        fix_all(t, dims, "it is the state of a recurrent layer, or a step of it")
    return bare(outs)


@rule("_cdist_forward", "_euclidean_dist")
def distances(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Distances between the rows of (..., P, C) and (..., R, C): sums over C."""
    a, b = t.of(args[0]), t.of(args[1])
    t.unify(a[-1], b[-1])
    t.over(a[-1])
    for x, y in zip(a[:-2], b[:-2]):
        t.unify(x, y)
    return [passed((*a[:-1], b[-2]))]


@rule("_pdist_forward")
def distances_within(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Distances between all pairs of the rows of (N, C): sums over C."""
    rows, inner = t.of(args[0])
    t.fix(rows, "every pair of it gives a number")
    t.over(inner)
    return bare(outs)
