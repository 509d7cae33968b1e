"""The registry of rules, by operator family."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from prunus.tracing.tracer import Dim, Dims, Rule, Tracer

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register one rule for a family of ATen operators (names without overload, in-place variants included)."""

    def put(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return put


def space(t: Tracer, dim: Dim) -> Dim:
    """A dimension whose indices are places."""
    return t.fix(dim, "it is a position in space or time")


def fix_all(t: Tracer, dims: Iterable[Dim], why: str) -> None:
    """Nothing of these dimensions can be cut."""
    for dim in dims:
        t.fix(dim, why)


def bare(outs: list[Tensor]) -> list[Dims]:
    """Results of which nothing can be cut."""
    return [[Dim() for _ in out.shape] for out in outs]


def passed(dims: Iterable[Dim]) -> Dims:
    """The same units, in a tensor that is no parameter any more."""
    return [Dim(dim.labels) for dim in dims]
