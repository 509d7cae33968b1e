"""Reductions, and what is computed along a dimension."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from prunus.tracing.rules.base import bare, fix_all, passed, rule
from prunus.tracing.tracer import Dim, Dims, Tracer

# where the dimensions stand among the arguments, and which they are if they are not said (None: all)
SECOND = {"norm": 2, "linalg_vector_norm": 2, "kthvalue": 2, "topk": 2}
OF_ZEROS = ("norm", "linalg_vector_norm", "mean", "sum", "var", "std", "amax", "amin")  # they are zero of zeros
LAST = ("kthvalue", "mode", "topk", "sort")


def along_which(t: Tracer, args: Any, kwargs: Any) -> Iterable[int]:
    """The dimensions that the operator works along, counted from the front."""
    at, n = SECOND.get(t.call.name, 1), max(args[0].dim(), 1)
    which = kwargs.get("dim", args[at] if len(args) > at else None)
    if which is None or isinstance(which, bool) or (not isinstance(which, int) and not len(which)):
        which = [-1] if t.call.name in LAST else range(n)
    return sorted({d % n for d in ([which] if isinstance(which, int) else which)})


@rule("mean", "sum", "amax", "amin", "max", "min", "var", "std", "prod", "any", "all", "logsumexp", "argmax", "argmin")
@rule("norm", "linalg_vector_norm", "nansum", "count_nonzero", "var_mean", "std_mean", "aminmax")
@rule("median", "nanmedian", "mode", "kthvalue")
def reduce(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Values are taken together: over the kept ones, once some are cut; numbers of positions cannot be kept so."""
    x, dims = args[0], t.of(args[0])
    gone = along_which(t, args, kwargs) if dims else ()
    tells_places = t.call.name.startswith("arg") or any(not out.is_floating_point() for out in outs[1:])
    for d in gone:
        if tells_places:
            t.fix(dims[d], "the code asks where in it a value lies")
        else:
            t.over(dims[d])
    # the norm of a silenced row of a weight is zero, as the row is: what is computed from it is a weight still
    through = list(dims) if t.call.name in OF_ZEROS else passed(dims)
    kept = [dim for d, dim in enumerate(through) if d not in gone]
    keepdim = [Dim() if d in gone else dim for d, dim in enumerate(through)]
    return [list(keepdim if out.dim() == x.dim() else kept) for out in outs]


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", "cumsum", "cumprod", "logcumsumexp")
@rule("sort", "topk", "cummax", "cummin")
def along(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Something is computed along one dimension: over the kept units, or not at all where positions count."""
    dims = list(t.of(args[0]))
    order_counts = any(not out.is_floating_point() for out in outs[1:])
    for d in along_which(t, args, kwargs) if dims else ():
        dims[d] = t.fix(dims[d], "the code counts positions along it") if order_counts else t.over(dims[d])
    return [passed(dims) for _ in outs]


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def fourier(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Some dimensions are transformed; the others pass."""
    dims = list(t.of(args[0]))
    for d in args[1]:
        dims[d] = t.fix(dims[d], "it is transformed")
    return [passed(dims)]


@rule("nll_loss_forward", "nll_loss2d_forward")
def likelihood(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Minus the log-probability of the target among the classes, which stay: (N, C, ...), (N, ...) -> (N, ...)."""
    dims, target, weight = list(t.of(args[0])), t.of(args[1]), args[2]
    t.fix(dims.pop(1 if len(dims) > 1 else 0), "classes are looked up in it")
    if weight is not None:
        fix_all(t, t.of(weight), "classes are looked up in it")
    for a, b in zip(dims, target):
        t.unify(a, b)
    if outs[0].dim() == len(dims):
        return [passed(dims), *bare(outs[1:])]
    for dim in dims:
        t.over(dim)
    return bare(outs)


@rule("renorm")
def renorm(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Every slice along one dimension is scaled down to a largest norm, taken over the others."""
    dims = t.of(args[0])
    for d, dim in enumerate(dims):
        if d != args[2] % len(dims):
            t.over(dim)
    return [passed(dims)]
