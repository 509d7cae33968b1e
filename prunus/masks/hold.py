"""Hard masks: weights that are zero, and stay zero whatever trains them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary

from prunus.core.undo import all_or_nothing, keep_item, keep_values

HELD: Any = WeakTensorKeyDictionary()  # parameter -> its mask, True = keep; forgotten with the parameter
_hooked: list[Any] = []


@torch.no_grad()
def hold_(parameter: nn.Parameter, keep: Tensor) -> None:
    r"""Set what a mask (True = keep) removes to zero, now and after every step of every optimizer of torch.

    .. math:: w \leftarrow w \odot m, \quad \partial L / \partial w \leftarrow \partial L / \partial w \odot m, \quad
        v \leftarrow v \odot m

    for every tensor :math:`v` of an optimizer's state that has the shape of the weight, so that neither momentum nor
    weight decay moves it.  The last mask of a parameter counts; where `prunus.shrink_` cuts the parameter, it
    follows.  Nothing is added to the network; a copy of it (``copy.deepcopy``) has the zeros, but is not held until it
    is masked itself.
    """
    if not _hooked:
        _hooked.append(register_optimizer_step_post_hook(_after_step))
    with all_or_nothing(parameter):
        keep_values(parameter.grad)
        if parameter not in HELD and parameter.is_leaf:
            flag = parameter.requires_grad
            parameter.requires_grad_(True).register_post_accumulate_grad_hook(_after_gradient)
            parameter.requires_grad_(flag)
        keep_item(HELD, parameter)
        HELD[parameter] = keep.to(parameter.device)
        parameter.masked_fill_(~HELD[parameter], 0)
        _after_gradient(parameter)


def release_(model: nn.Module) -> None:
    """Let every weight of a network train again; those that are zero start from zero."""
    with all_or_nothing():
        for parameter in model.parameters():
            let_go_(parameter)


def let_go_(parameter: Tensor) -> None:
    """No mask holds the parameter any more."""
    keep_item(HELD, parameter)
    HELD.pop(parameter, None)


def _removed(parameter: Tensor) -> Tensor | None:
    """What is held at zero, on the parameter's device."""
    keep: Tensor | None = HELD.get(parameter)
    if keep is None:
        return None
    if keep.shape != parameter.shape:  # it was cut since: what is zero in it now, stays zero
        keep = HELD[parameter] = parameter.detach() != 0
    if keep.device != parameter.device:
        keep = HELD[parameter] = keep.to(parameter.device)
    return ~keep


@torch.no_grad()
def _after_gradient(parameter: Tensor) -> None:
    removed = _removed(parameter)
    if removed is not None and parameter.grad is not None:
        parameter.grad.masked_fill_(removed, 0)


@torch.no_grad()
def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        removed = _removed(parameter)
        if removed is not None:
            parameter.masked_fill_(removed, 0)
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value.masked_fill_(removed, 0)
