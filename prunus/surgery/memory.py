"""What a network remembers of its cuts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from prunus.core import Plan, TensorPlan
from prunus.core.checks import check_arguments
from prunus.surgery.restate import Memory, remembered

_ATTRIBUTE = "_prunus_plan"  # of every module of a network that was cut: the memory, and the module's name in it
LISTENERS: list[Callable[[nn.Module, Plan], None]] = []  # told of every plan that a network comes to remember


def plan_of(model: nn.Module) -> Plan | None:
    """The cumulative plan of everything that was cut from `model`, in original coordinates; None if nothing was.

    It is said in the names that modules have now, wherever they were moved to: of a part of the network that was cut,
    of a wrapper around it, of layers under other names.  Of tensors that were replaced since it says nothing.
    """
    check_arguments(locals())
    return _recall(model)[0]


def plan_with_replaced(model: nn.Module) -> Plan | None:
    """As `plan_of`, for who builds the network of the present sizes and cuts it: new parts are as if they had been cut.

    A head that was made for what is left is one of the original's width in the dimensions that were cut.
    """
    plan, lost = _recall(model)
    instead = {name: entry for found in lost.values() for name, entry in found.items()}
    return None if plan is None else replace(plan, tensors={**plan.tensors, **instead})


def _recall(model: nn.Module) -> tuple[Plan | None, dict[str, dict[str, TensorPlan]]]:
    return remembered(model, {path: vars(module).get(_ATTRIBUTE) for path, module in model.named_modules()})


def check_memory(model: nn.Module) -> None:
    """Warn of tensors that were cut and of which nothing can be said any more, because others are in their places."""
    _, lost = _recall(model)
    if lost:
        first = next(iter(lost))
        warnings.warn(
            f"of {len(lost)} tensors that were cut (first: '{first}') nothing is known any more: others are in "
            "their places. A file of this network is read onto one that is changed alike: prunus.load(path, a function "
            "that builds the original and replaces the same parts).",
            stacklevel=3,
        )


def remember_(model: nn.Module, plan: Plan) -> None:
    """Add a plan, about to be carried out on the network as it is, to what it remembers; weights are scaled then."""
    before, plan = plan_of(model), replace(plan, scaled=())
    replace_(model, plan if before is None else before.then(plan))


def replace_(model: nn.Module, plan: Plan) -> None:
    """Let the network remember `plan` and nothing else."""
    memory = Memory(plan)
    for path, module in model.named_modules():
        vars(module)[_ATTRIBUTE] = memory, path
    for listener in LISTENERS:
        listener(model, plan)


def memory_format(model: nn.Module) -> str:
    """``"channels_last"`` when the 4-d parameters lie so, else ``"contiguous"``.

    >>> memory_format(nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last))
    'channels_last'
    """
    four = [p for p in model.parameters() if p.dim() == 4 and not p.is_contiguous()]
    return "channels_last" if any(p.is_contiguous(memory_format=torch.channels_last) for p in four) else "contiguous"
