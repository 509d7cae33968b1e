"""How labels move through each family of operators.

A rule takes the tracer and the call, unifies what must be cut alike, fixes what cannot be cut, notes the integers
that have to follow a cut, and returns the labelled dimensions of every output.  It knows operators, never modules.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from prunus.tracing.rules import (  # noqa: F401  (they register themselves)
    contractions,
    elementwise,
    lookups,
    norms,
    pieces,
    reductions,
    shapes,
    solvers,
)
from prunus.tracing.rules.base import RULES
from prunus.tracing.rules.elementwise import pointwise
from prunus.tracing.tracer import Rule


def find(func: Any) -> Rule | None:
    """The rule of an ATen overload: its family's, else that of pointwise operators if it is one, else None."""
    name = func._schema.name.removeprefix("aten::")
    for known in (name, name.rstrip("_"), name.removesuffix("_copy")):
        if known in RULES:
            return RULES[known]
    return pointwise if _pointwise(func, name) else None


@cache
def _pointwise(func: Any, name: str) -> bool:
    """Whether torch tags an operator, or the one that it is the in-place variant of, as pointwise."""
    packet = getattr(torch.ops.aten, name.rstrip("_"), None) if func.namespace == "aten" else None
    overloads = [getattr(packet, overload) for overload in packet.overloads()] if packet is not None else []
    return any(torch.Tag.pointwise in overload.tags for overload in (func, *overloads))
