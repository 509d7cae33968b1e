"""What a network remembers of its cuts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from prunus.core import Plan

_ATTRIBUTE = "_prunus_plan"
LISTENERS: list[Callable[[nn.Module, Plan], None]] = []  # told of every plan that a network comes to remember


def plan_of(model: nn.Module) -> Plan | None:
    """The cumulative plan of everything that was cut from `model`, in original coordinates; None if nothing was."""
    found = vars(model).get(_ATTRIBUTE)
    return found if isinstance(found, Plan) else None


def remember_(model: nn.Module, plan: Plan) -> None:
    """Add a plan, made on the network as it was just now, to what the network remembers; its weights are scaled now."""
    before, plan = plan_of(model), replace(plan, scaled=())
    replace_(model, plan if before is None else before.then(plan))


def replace_(model: nn.Module, plan: Plan) -> None:
    """Let the network remember `plan` and nothing else."""
    vars(model)[_ATTRIBUTE] = plan
    for listener in LISTENERS:
        listener(model, plan)


def memory_format(model: nn.Module) -> str:
    """``"channels_last"`` when the 4-d parameters lie so, else ``"contiguous"``.

    >>> memory_format(nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last))
    'channels_last'
    """
    four = [p for p in model.parameters() if p.dim() == 4 and not p.is_contiguous()]
    return "channels_last" if any(p.is_contiguous(memory_format=torch.channels_last) for p in four) else "contiguous"
