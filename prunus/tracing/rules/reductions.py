"""Normalisation, pooling, reductions and look-ups."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prunus.tracing.rules.base import rule, space
from prunus.tracing.tracer import Dim, Dims, Rule, Tracer


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
            dims[d] = space(t, dims[d])
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
    first = 2 if t.call.name in ("norm", "linalg_vector_norm") else 1  # their first argument is the order of the norm
    rest = [a for a in args[first:] if isinstance(a, (int, list, tuple)) and not isinstance(a, bool)]
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
    which = kwargs.get("dim", along_dim[-1] if along_dim else -1)
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
