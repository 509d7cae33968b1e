"""Elementwise operators, copies and constants."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prunus.tracing.rules.base import rule
from prunus.tracing.tracer import Dim, Dims, Tracer


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
