"""Normalisation, pooling and resizing."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prunus.tracing.rules.base import passed, rule, space
from prunus.tracing.tracer import Dim, Dims, Rule, Tracer


@rule("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
@rule("batch_norm", "miopen_batch_norm", "_batch_norm_no_update", "_batch_norm_with_update")
def batch_norm(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Every channel by itself, in evaluation mode."""
    dims, name = t.of(args[0]), t.call.name
    roles = zip(args[1:5], ("norm_scale", "norm_shift", "stat", "stat"))
    # `_native_batch_norm_legit.no_stats` has a flag in their place
    channels = [(t.of(operand)[0], role) for operand, role in roles if isinstance(operand, Tensor)]
    t.unify_all(dims[1], [dim for dim, _ in channels])
    for dim, role in channels:
        t.role(dim, role)
    always = name.endswith(("_no_training", "_no_update"))
    if not (always or (name != "_batch_norm_with_update" and isinstance(args[3], Tensor) and args[5] is False)):
        for d in (0, *range(2, len(dims))):
            t.over(dims[d])
    channel = dims[1].labels
    kept = [Dim(d.labels, d.source) for d in dims]  # of a weight, if its statistics are taken
    return [kept, *([Dim(channel if len(o) else None) for _ in o.shape] for o in outs[1:])]


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Statistics over the last dimensions: those of the kept units, once some are cut."""
    dims = t.of(args[0])
    first = len(dims) - len(args[1])
    for d, (dim, size) in enumerate(zip(dims[first:], args[1])):
        t.over(dim)
        t.fact((1, d), size, dim)
    for operand, role in zip((x for x in args[2:4] if isinstance(x, Tensor)), ("norm_scale", "norm_shift")):
        for a, b in zip(dims[first:], t.of(operand)):
            t.unify(a, b)
            t.role(b, role)
    return [passed(dims), *(passed(dims[:first]) + [Dim() for _ in o.shape[first:]] for o in outs[1:])]


@rule("native_group_norm")
def group_norm(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Statistics over the channels of a group, and over space."""
    x, samples, channels, groups = args[0], args[3], args[4], args[6]
    dims = t.of(x)
    for operand, role in zip(args[1:3], ("norm_scale", "norm_shift")):
        if operand is not None:
            t.unify(dims[1], t.of(operand)[0])
            t.role(t.of(operand)[0], role)
    major, minor = (Dim(m) for m in t.labels.split(dims[1].labels, groups, channels // groups))
    t.fact((3,), samples, dims[0])
    t.fact((4,), channels, dims[1])
    t.fact((6,), groups, major)
    if minor.labels is not None:  # else every channel is a group of its own
        t.over(dims[1])
        t.over(major)
    for dim in dims[2:]:
        space(t, dim)
    return [passed(dims[:2]) + [Dim() for _ in dims[2:]], *([Dim(dims[0].labels), major] for _ in outs[1:])]


@rule("_weight_norm_interface")
def weight_norm(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """v * g / |v|, with the norm over all dimensions but one."""
    v, g, which = t.of(args[0]), t.of(args[1]), args[2] if len(args) > 2 else 0
    for d, dim in enumerate(v):
        if d == which:
            t.unify(dim, g[d])
            t.role(g[d], "norm_scale")
            t.role(dim, "out")
        else:
            t.over(dim)
            t.role(dim, "in")
    norms = [Dim(dim.labels if d == which else None) for d, dim in enumerate(v)]
    return [passed(v), norms[: outs[1].dim()]]


def _spatial(number: int) -> Rule:
    """The last `number` dimensions are space; the others pass."""

    def pool(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
        dims = list(t.of(args[0]))
        for d in range(len(dims) - number, len(dims)):
            dims[d] = space(t, dims[d])
        return [passed(dims) for _ in outs]

    return pool


for _n in (1, 2, 3):
    rule(f"max_pool{_n}d_with_indices", f"max_pool{_n}d", f"avg_pool{_n}d", f"adaptive_avg_pool{_n}d")(_spatial(_n))
    rule(f"adaptive_max_pool{_n}d", f"reflection_pad{_n}d", f"replication_pad{_n}d")(_spatial(_n))
    rule(f"upsample_nearest{_n}d", f"_upsample_nearest_exact{_n}d")(_spatial(_n))
for _n in (2, 3):
    rule(f"_adaptive_avg_pool{_n}d", f"mkldnn_max_pool{_n}d")(_spatial(_n))
rule("upsample_linear1d")(_spatial(1))
rule("upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa")(_spatial(2))
rule("_upsample_lanczos2d_aa", "mkldnn_adaptive_avg_pool2d")(_spatial(2))
rule("upsample_trilinear3d")(_spatial(3))


@rule("max_unpool2d", "max_unpool3d", "fractional_max_pool2d", "fractional_max_pool3d")
def pool_beside(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Pools with an operand more, of places or of random numbers: (..., C, space) beside (..., C, places)."""
    number = int(t.call.name[-2])
    beside = args[1] if isinstance(args[1], Tensor) else args[3]
    dims, other = t.of(args[0]), t.of(beside)
    lead = len(dims) - number
    if len(other) < lead:  # random numbers of an unbatched input
        other = [Dim()] * (lead - len(other)) + other
    for a, b in zip(dims[:lead], other[:lead]):
        t.unify(a, b)
    for dim in (*dims[lead:], *other[lead:]):
        space(t, dim)
    return [passed(dims[:lead]) + dims_of for dims_of in ([Dim()] * number for _ in outs)]


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
    return [passed(dims)]
