"""The optimizer of a stage."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from prunus.core.decay import undecayed
from prunus.core.errors import InputError, UnknownNameError, did_you_mean
from prunus.core.groups import Groups

OPTIMIZERS = ("sgd", "adamw")
DECAYS = ("all", "weights")


def build_optimizer(
    model: nn.Module, name: str, *, lr: float, momentum: float, weight_decay: float, decay: str
) -> Optimizer:
    """SGD (with Nesterov's momentum when there is any) or AdamW over the parameters that are not frozen.

    ``decay="all"`` decays every parameter, as the references of network slimming do; ``decay="weights"`` leaves out
    what has one dimension: biases, and the scales and shifts of normalisations.  What does not decay by its
    method, gates and bases of filters (`undecayed`), is a group of its own.

    Raises: `InputError` when nothing can be trained, `UnknownNameError` for an unknown name.
    """
    if name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        raise UnknownNameError(f"there is no optimizer '{name}'.{did_you_mean(name, OPTIMIZERS)} Known: {known}.")
    if decay not in DECAYS:
        raise UnknownNameError(f"decay={decay!r}.{did_you_mean(decay, DECAYS)} Known: {', '.join(DECAYS)}.")
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InputError("no parameter of the network requires a gradient; there is nothing to train.")
    free = {id(p) for p in undecayed(model)}
    own = [p for p in parameters if id(p) in free]
    parameters = [p for p in parameters if id(p) not in free]
    groups = [{"params": parameters, "weight_decay": weight_decay}]
    if decay == "weights":
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
    groups = [group for group in [*groups, {"params": own, "weight_decay": 0.0}] if group["params"]]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0)


def attach_regularizer(regularizer: Any, groups: Groups | None, optimizer: Optimizer) -> Any:
    """The regularizer at work in the optimizer, or None."""
    if regularizer is None:
        return None
    from prunus.regularizers import attach, regularizer_of

    if groups is None:
        raise InputError("a regularizer needs groups=prunus.trace(model, example_inputs) to know what it acts on.")
    return attach(regularizer_of(regularizer), groups, optimizer)
