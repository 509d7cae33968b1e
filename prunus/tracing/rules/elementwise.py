"""Elementwise operators, copies and constants."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prunus.tracing.rules.base import bare, fix_all, passed, rule
from prunus.tracing.tracer import Dim, Dims, Tracer


@rule("copy", "where", "hardswish", "masked_fill", "fill", "zero", "relu6", "native_dropout", "dropout")
@rule("_prelu_kernel", "rrelu_with_noise", "log_sigmoid_forward", "fmod", "remainder", "clamp_min", "clamp_max")
@rule("isnan", "isinf", "isfinite", "nan_to_num", "polar", "complex", "bernoulli", "bitwise_not", "floor_divide")
@rule("_add_relu", "uniform", "exponential", "random", "cauchy", "log_normal", "geometric", "poisson", "binomial")
def pointwise(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Operands are broadcast against each other: dimensions of equal size are cut alike."""
    operands = [a for a in [*args, *kwargs.values()] if isinstance(a, Tensor)]
    if t.call.name in ("add", "add_", "sub", "sub_"):
        for x in operands:
            if x.dim() == 1 < outs[0].dim():  # of a linear layer whose product was not fused with it
                t.role(t.of(x)[0], "bias")
    return [broadcast(t, operands, out) for out in outs]


def broadcast(t: Tracer, operands: list[Tensor], out: Tensor) -> Dims:
    """The dimensions of an elementwise result of the shape of `out`.

    A dimension of size one has labels where it is a piece of a longer one: it meets others of size one, and stays
    where it is repeated.
    """
    dims = []
    for back in range(out.dim(), 0, -1):
        n = out.shape[-back]
        given = [(x.shape[-back], t.of(x)[-back]) for x in operands if x.dim() >= back]
        meet = [dim for size, dim in given if size == n and (n > 1 or dim.labels is not None)]
        fix_all(t, (dim for size, dim in given if size != n), "it is repeated along a longer dimension")
        for other in meet[1:]:
            t.unify(meet[0], other)
        weight = meet and all(dim.source is not None for dim in meet)  # a weight computed from parameters alone
        dims.append(Dim(meet[0].labels, meet[0].source if weight else None) if meet else Dim())
    return dims


@rule("mse_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss", "binary_cross_entropy", "dist")
@rule("binary_cross_entropy_with_logits")
def loss(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Elementwise, and summed up unless the result is as large as its operands."""
    operands = [a for a in [*args, *kwargs.values()] if isinstance(a, Tensor)]
    widest = max(operands, key=lambda x: x.dim())
    dims = broadcast(t, operands, widest)
    if outs[0].shape == widest.shape:
        return [dims]
    for dim in dims:
        t.over(dim)
    return bare(outs)


@rule("isin", "bucketize", "searchsorted")
def compared(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Every element is looked for in a sequence, which stays."""
    x, sequence = (args[1], args[0]) if t.call.name == "searchsorted" else args[:2]
    others = [a for a in [sequence, *args[2:], *kwargs.values()] if isinstance(a, Tensor)]
    for other in others:
        rows = t.of(other)
        fix_all(t, rows[-1:] if other is sequence and t.call.name == "searchsorted" else rows, "it is searched")
    if not isinstance(x, Tensor):
        return bare(outs)
    if t.call.name == "searchsorted" and sequence.dim() > 1:  # a sequence for every row
        for a, b in zip(t.of(x)[:-1], t.of(sequence)):
            t.unify(a, b)
    return [passed(t.of(x))]


@rule("clone", "detach", "alias", "lift_fresh", "lift_fresh_copy", "_to_copy", "contiguous", "_conj", "_neg_view")
@rule("resolve_conj", "resolve_neg")
def same(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """The same tensor again."""
    return [t.of(args[0])]


@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like")
def alike(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """A constant as large as another tensor is cut with it."""
    return [passed(t.of(args[0]))]


@rule("zeros", "ones", "full", "empty", "rand", "randn", "randint")
@rule("new_zeros", "new_ones", "new_full", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted")
def constant(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """A constant of any size fits whatever it meets: units of its own, which follow."""
    dims = [t.fresh(n) for n in outs[0].shape]
    for at, sizes in [(k, a) for k, a in enumerate(args) if isinstance(a, (list, tuple))][:1]:  # strides come second
        for d, size in enumerate(sizes):
            t.fact((at, d), size, dims[d])
    return [dims]


@rule("normal")
def normal(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Random numbers around tensors, in a tensor, or of a given size."""
    return (pointwise if any(isinstance(a, Tensor) for a in args) else constant)(t, args, kwargs, outs)


@rule("arange", "linspace", "logspace", "eye", "scalar_tensor", "randperm", "tril_indices", "triu_indices", "range")
@rule("hann_window", "hamming_window", "bartlett_window", "blackman_window", "kaiser_window")
@rule("fft_fftfreq", "fft_rfftfreq")
@rule("prim::device", "prim::dtype", "prim::layout")
def counted(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Values that tell their position: nothing that meets them can be cut."""
    return bare(outs)


@rule("_local_scalar_dense", "item", "nonzero", "nonzero_static", "is_nonzero", "equal", "allclose", "_assert_async")
@rule("_functional_assert_async", "masked_select", "masked_scatter", "take", "put", "_unique", "_unique2", "unique_dim")
@rule("unique_consecutive", "unique_dim_consecutive", "bincount", "histc", "repeat_interleave", "multinomial")
@rule("affine_grid_generator", "torchvision::nms", "torchvision::ps_roi_align", "torchvision::ps_roi_pool")
def read(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Values leave for Python, or sizes depend on them: nothing of the tensors can be cut."""
    for x in [*args, *kwargs.values()]:
        if isinstance(x, Tensor):
            fix_all(t, t.of(x), "the code reads its values")
    return bare(outs)


@rule("view_as_complex", "view_as_real")
def pairs(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Real and imaginary part in a last dimension of two."""
    dims = list(t.of(args[0]))
    if t.call.name == "view_as_real":
        return [[*dims, Dim()]]
    t.fix(dims[-1], "it holds a real and an imaginary part")
    return [dims[:-1]]
