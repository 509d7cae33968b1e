"""The registry of rules, by operator family."""

from __future__ import annotations

from collections.abc import Callable

from prunus.tracing.tracer import Dim, Rule, Tracer

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
