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
            t.over(dims[d])
    channel = dims[1].labels
    return [[Dim(d.labels) for d in dims], *([Dim(channel if len(o) else None) for _ in o.shape] for o in outs[1:])]


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Statistics over the last dimensions: those of the kept units, once some are cut."""
    dims = t.of(args[0])
    last = dims[len(dims) - len(args[1]) :]
    for d, (dim, size) in enumerate(zip(last, args[1])):
        t.over(dim)
        t.fact((1, d), size, dim)
    for operand, role in zip((x for x in args[2:4] if isinstance(x, Tensor)), ("norm_scale", "norm_shift")):
        for a, b in zip(last, t.of(operand)):
            t.unify(a, b)
            t.role(b, role)
    return [[Dim(d.labels) for d in dims], *([Dim() for _ in o.shape] for o in outs[1:])]


@rule("native_group_norm")
def group_norm(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Statistics over the channels of a group, and over space."""
    x, channels, groups = args[0], args[4], args[6]
    dims = t.of(x)
    for operand, role in zip(args[1:3], ("norm_scale", "norm_shift")):
        if operand is not None:
            t.unify(dims[1], t.of(operand)[0])
            t.role(t.of(operand)[0], role)
    if dims[1].labels is not None:
        major, minor = (Dim(m) for m in t.labels.split(dims[1].labels, groups, channels // groups))
        t.fact((4,), channels, dims[1])
        t.fact((6,), groups, major)
        t.over(dims[1])
    for dim in dims[2:]:
        space(t, dim)
    return [[Dim(d.labels) for d in dims[:2]] + [Dim() for _ in dims[2:]], *([Dim() for _ in o.shape] for o in outs[1:])]


@rule("_weight_norm_interface")
def weight_norm(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """v * g / |v|, with the norm over all dimensions but one."""
    v, g, which = t.of(args[0]), t.of(args[1]), args[2] if len(args) > 2 else 0
    for d, dim in enumerate(v):
        t.over(dim)
        if d == which:
            t.unify(dim, g[d])
            t.role(g[d], "norm_scale")
            t.role(dim, "out")
        else:
            t.role(dim, "in")
    norms = [Dim(dim.labels) if d == which else Dim() for d, dim in enumerate(v)]
    return [[Dim(d.labels) for d in v], norms if len(norms) == outs[1].dim() else [Dim() for _ in outs[1].shape]]


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
    """Values are taken together: over the kept ones, once some are cut; numbers of positions cannot be kept so."""
    x, dims = args[0], list(t.of(args[0]))
    first = 2 if t.call.name in ("norm", "linalg_vector_norm") else 1  # their first argument is the order of the norm
    rest = [a for a in args[first:] if isinstance(a, (int, list, tuple)) and not isinstance(a, bool)]
    which = kwargs.get("dim", rest[0] if rest else None)
    which = range(x.dim()) if which is None or which == [] else [which] if isinstance(which, int) else which
    gone = {d % max(x.dim(), 1) for d in which}
    tells_places = t.call.name.startswith("arg") or any(not out.is_floating_point() for out in outs[1:])
    for d in gone if dims else ():
        if tells_places:
            t.fix(dims[d], "the code asks where in it a value lies")
        else:
            t.over(dims[d])
    kept = [dim for d, dim in enumerate(dims) if d not in gone]
    keepdim = [Dim() if d in gone else dim for d, dim in enumerate(dims)]
    return [list(keepdim if out.dim() == x.dim() else kept if out.dim() == len(kept) else []) for out in outs]


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", "cumsum", "cumprod", "logcumsumexp")
@rule("sort", "roll", "topk", "cummax", "cummin", "kthvalue", "median", "mode")
def along(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Something is computed along one dimension: over the kept units, or not at all where positions count."""
    x, dims = args[0], list(t.of(args[0]))
    first = 2 if t.call.name in ("topk", "kthvalue") else 1  # their first argument is how many, or which
    along_dim = [a for a in args[first:] if isinstance(a, (int, list, tuple)) and not isinstance(a, bool)]
    which = kwargs.get("dim", along_dim[-1] if along_dim else -1)
    order_counts = t.call.name == "roll" or any(not out.is_floating_point() for out in outs[1:])
    for d in ([which] if isinstance(which, int) else which or range(x.dim())) if dims else ():
        dims[d] = t.fix(dims[d], "the code counts positions along it") if order_counts else t.over(dims[d])
    same_shape = [o.dim() == x.dim() for o in outs]
    return [[Dim(d.labels) for d in dims] if same else [Dim() for _ in o.shape] for same, o in zip(same_shape, outs)]


@rule("flip")
def flip(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Indices in the opposite order."""
    gone = {d % outs[0].dim() for d in args[1]}
    return [
        [
            Dim(dim.labels[::-1].copy()) if d in gone and dim.labels is not None else dim
            for d, dim in enumerate(t.of(args[0]))
        ]
    ]


@rule("tril", "triu")
def triangle(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Two dimensions whose positions are compared."""
    dims = list(t.of(args[0]))
    for d in (-2, -1):
        dims[d] = t.fix(dims[d], "the code counts positions along it")
    return [dims]


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Some dimensions are transformed; the others pass."""
    dims = list(t.of(args[0]))
    for d in args[1]:
        dims[d] = t.fix(dims[d], "it is transformed")
    return [[Dim(d.labels) for d in dims]]


@rule("grid_sampler_2d", "grid_sampler_3d", "torchvision::roi_align", "torchvision::roi_pool")
def sampled(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Values at other places: (N, C, ...) -> (N', C, ...)."""
    x = t.of(args[0])
    for dim in (x[0], *x[2:], *t.of(args[1])):
        space(t, dim)
    return [[Dim(), Dim(x[1].labels), *(Dim() for _ in out.shape[2:])] for out in outs]


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
