"""Elementwise operators, copies and constants."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prunus.tracing.rules.base import rule
from prunus.tracing.tracer import Dim, Dims, Tracer


@rule("copy", "where", "hardswish", "masked_fill", "fill", "zero", "relu6", "native_dropout", "dropout")
@rule("_prelu_kernel", "rrelu_with_noise", "log_sigmoid_forward", "fmod", "remainder", "clamp_min", "clamp_max")
@rule("isnan", "isinf", "isfinite", "nan_to_num", "polar", "complex", "bernoulli", "bitwise_not")
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
        weight = meet and all(dim.source is not None for dim in meet)  # a weight computed from parameters alone
        dims.append(Dim(meet[0].labels, meet[0].source if weight else None) if meet else Dim())
    return dims


@rule("clone", "detach", "alias", "lift_fresh", "lift_fresh_copy", "_to_copy", "contiguous")
def same(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """The same tensor again."""
    return [t.of(args[0])]


@rule("zeros", "ones", "full", "empty", "zeros_like", "ones_like", "full_like", "empty_like")
@rule("new_zeros", "new_ones", "new_full", "new_empty", "empty_strided", "new_empty_strided")
@rule("rand_like", "randn_like", "rand", "randn")
def constant(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """A constant of any size fits whatever it meets: units of its own, which follow."""
    dims = [t.fresh(n) for n in outs[0].shape]
    at = 1 if t.call.name.startswith("new_") else 0
    if len(args) > at and isinstance(args[at], (list, tuple)):
        for d, size in enumerate(args[at]):
            t.fact((at, d), size, dims[d])
    return [dims]


@rule("arange", "linspace", "logspace", "eye", "scalar_tensor", "randperm", "tril_indices", "triu_indices")
@rule("hann_window", "hamming_window", "bartlett_window", "blackman_window", "fft_fftfreq", "fft_rfftfreq", "range")
@rule("prim::device", "prim::dtype", "prim::layout")
def counted(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Values that tell their position: nothing that meets them can be cut."""
    return [[Dim() for _ in out.shape] for out in outs]


@rule("_local_scalar_dense", "item", "nonzero", "nonzero_static", "is_nonzero", "equal", "allclose")
@rule("_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount", "torchvision::nms")
def read(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Values leave for Python: nothing of the tensor can be cut."""
    for x in args:
        if isinstance(x, Tensor):
            for dim in t.of(x):
                t.fix(dim, "the code reads its values")
    return [[Dim() for _ in out.shape] for out in outs]


@rule("view_as_complex", "view_as_real")
def pairs(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Real and imaginary part in a last dimension of two."""
    dims = list(t.of(args[0]))
    if t.call.name == "view_as_real":
        return [[*dims, Dim()]]
    t.fix(dims[-1], "it holds a real and an imaginary part")
    return [dims[:-1]]
