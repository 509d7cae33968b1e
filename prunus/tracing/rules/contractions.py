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
