"""How labels move through each family of operators.

A rule takes the tracer and the call, unifies what must be cut alike, fixes what cannot be cut, notes the integers
that have to follow a cut, and returns the labelled dimensions of every output.  It knows operators, never modules.
"""

from __future__ import annotations

from typing import Any

import torch

from prunus.tracing.rules import contractions, elementwise, reductions, shapes  # noqa: F401  (they register themselves)
from prunus.tracing.rules.base import RULES
from prunus.tracing.rules.elementwise import pointwise
from prunus.tracing.tracer import Rule


def find(func: Any) -> Rule | None:
    """The rule of an ATen overload: its family's, else that of pointwise operators if it is one, else None."""
    name = func._schema.name.removeprefix("aten::")
    found = RULES.get(name) or RULES.get(name.rstrip("_"))
    if found is None and torch.Tag.pointwise in func.tags:
        return pointwise
    return found
