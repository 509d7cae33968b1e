"""Convolutions and matrix products: where units are produced and consumed."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prunus.tracing.rules.base import rule, space
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
        return Dim(t.labels.merge(row_group.labels, groups, ws[1].labels, weight.shape[1]))
    t.unify(x_position, ws[1])
    _contracted(t, ws[1])
    return ws[0]


def _contracted(t: Tracer, *operands: Dim) -> None:
    """A sum over units is exact under silence where one operand is a parameter: its columns are zero."""
    if not any(dim.source for dim in operands):
        t.contracted.append(t.over(operands[0]))


@rule("mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "dot", "vdot", "addmv")
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
        for back, (dim, other) in enumerate(zip(t.of(added)[::-1], dims[::-1]), 1):
            t.role(dim, "bias")
            if added.shape[-back] == outs[0].shape[-back] > 1:
                t.unify(other, dim)
    return [dims]


@rule("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention")
@rule("_scaled_dot_product_efficient_attention", "_scaled_dot_product_fused_attention_overrideable")
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
    t.contracted.append(t.over(q[-1]))
    t.equal(q[-1], v[-1])  # the fused kernel takes heads of one size
    t.scales(*(dim for dim in (q[0], q[-3], q[-1]) if dim.labels is not None))
    masks = [x for x in [*args[3:], *kwargs.values()] if isinstance(x, Tensor)]
    for mask in masks:
        scores = [*q[:-1], k[-2]]
        for a, b, n in zip(t.of(mask)[::-1], scores[::-1], tuple(mask.shape)[::-1]):
            if n > 1:
                t.unify(a, b)
    out = [Dim(dim.labels) for dim in (*q[:-1], v[-1])]
    return [out, *(out[:-1] if o.dim() == len(out) - 1 else [Dim() for _ in o.shape] for o in outs[1:])]


@rule("_grouped_mm")
def grouped_mm(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Tokens (T, in), sorted by expert, times (experts, in, out): the experts stay."""
    x, w = t.of(args[0]), t.of(args[1])
    if len(x) != 2 or len(w) != 3:
        for dim in (*x, *w):
            t.fix(dim, "a grouped product of a form that is not followed")
        return [[Dim() for _ in outs[0].shape]]
    t.fix(w[0], "the code routes to it by number")
    t.unify(x[1], w[1])
    _contracted(t, x[1], w[1])
    t.role(w[1], "in")
    t.role(w[2], "out")
    t.scales(x[1], w[2])
    return [[x[0], Dim(w[2].labels)]]


@rule("_cdist_forward", "_euclidean_dist")
def distances(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Distances between the rows of (..., P, C) and (..., R, C): sums over C."""
    a, b = t.of(args[0]), t.of(args[1])
    t.unify(a[-1], b[-1])
    t.over(a[-1])
    return [[*a[:-1], b[-2]]]
