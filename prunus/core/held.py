"""Weights that are held at zero: which ones, through every optimizer's step, in every copy of their module."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary

from prunus.core.errors import FileError, InputError
from prunus.core.fields import LONG, entries, parsed, text
from prunus.core.parts import Mask
from prunus.core.undo import all_or_nothing, keep_item, keep_values

_HELD: Any = WeakTensorKeyDictionary()  # parameter -> its mask, True = keep; forgotten with the parameter
_TAKEN: Any = WeakTensorKeyDictionary()  # parameter -> a weak reference to what moves its mask while it trains
_MARK = "_prunus_held"  # of the module that owns a held parameter: a mark for each
_hooked: list[Any] = []


class Mark:
    """What makes a copy of a module hold what the module holds (``copy.deepcopy``, ``torch.save(model)``)."""

    def __init__(self, parameter: nn.Parameter) -> None:
        self.parameter = parameter

    def __getstate__(self) -> dict[str, Any]:
        return {"parameter": self.parameter, "keep": _HELD.get(self.parameter)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.parameter = state["parameter"]
        if state["keep"] is not None:
            _hold_(self.parameter, state["keep"])


def hold_weight_(model: nn.Module, name: str, keep: Tensor) -> None:
    """Hold what a mask (True = keep) of one parameter removes at zero; see `prunus.hold_`.

    Raises: `InputError` while something else moves the parameter's mask.
    """
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    parameter = owner._parameters[leaf]  # which forward may see in another way: as coefficients, say
    assert parameter is not None
    check_free({name: parameter})
    with all_or_nothing(owner):
        vars(owner).setdefault(_MARK, {})[leaf] = Mark(parameter)
        _hold_(parameter, keep)


@torch.no_grad()
def _hold_(parameter: nn.Parameter, keep: Tensor) -> None:
    if not _hooked:
        _hooked.append(register_optimizer_step_post_hook(_after_step))
    with all_or_nothing(parameter):
        keep_values(parameter.grad)
        if parameter not in _HELD and parameter.is_leaf:
            flag = parameter.requires_grad
            parameter.requires_grad_(True).register_post_accumulate_grad_hook(_after_gradient)
            parameter.requires_grad_(flag)
        keep_item(_HELD, parameter)
        _HELD[parameter] = keep.to(parameter.device)
        parameter.masked_fill_(~_HELD[parameter], 0)
        _after_gradient(parameter)


def let_go_(parameter: Tensor) -> bool:
    """No mask holds the parameter any more; whether one did."""
    keep_item(_HELD, parameter)
    return _HELD.pop(parameter, None) is not None


def take_(parameters: Mapping[str, Tensor], owner: object) -> None:
    """Parameters whose masks `owner` moves from now on.

    Raises: `InputError` when something else moves the mask of one.
    """
    check_free(parameters, owner)
    for p in parameters.values():
        keep_item(_TAKEN, p)
        _TAKEN[p] = weakref.ref(owner)


def give_back_(parameters: Iterable[Tensor], owner: object) -> None:
    """The end of `take_`, of what is still the owner's."""
    for p in parameters:
        if p in _TAKEN and _TAKEN[p]() in (owner, None):
            keep_item(_TAKEN, p)
            del _TAKEN[p]


def check_free(parameters: Mapping[str, Tensor], but: object = None) -> None:
    """Raise `InputError` where something, `but` for this, moves the mask of a parameter while it trains."""
    for name, p in parameters.items():
        if p in _TAKEN and (owner := _TAKEN[p]()) is not None and owner is not but:
            raise InputError(
                f"a {type(owner).__name__} moves the mask of '{name}' while it trains: finish_() or detach() it first."
            )


def held(model: nn.Module) -> dict[str, Tensor]:
    """The masks (True = keep) of the parameters that are held, by name."""
    found = ((name, _removed(p)) for name, p in model.named_parameters())
    return {name: ~removed for name, removed in found if removed is not None}


def held_text(model: nn.Module, masks: Mapping[str, Tensor]) -> str:
    """Masks for the header of a file: a name alone where the mask is what is not zero; "" for no masks.

    >>> net = nn.Linear(2, 1, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[0.0, 1.0]]))
    >>> held_text(net, {"weight": torch.tensor([[False, True]])}), held_text(net, {"weight": torch.ones(1, 2).bool()})
    ('{"weight": ""}', '{"weight": "wA=="}')
    """
    own = dict(model.named_parameters())
    bits = {n: "" if torch.equal(own[n] != 0, keep) else Mask.of(keep).bits for n, keep in masks.items()}
    return json.dumps(bits) if bits else ""


def held_from(told: str, tensors: Mapping[str, Tensor], parameters: Iterable[str]) -> dict[str, Tensor]:
    """The masks of a file's header, of the tensors in the file that are `parameters`; raises `FileError`."""
    try:
        data = entries(parsed(told)) if told else {}
        if unknown := set(data) - (set(parameters) & set(tensors)):
            raise ValueError(f"'{min(unknown)[:99]}' is no parameter of the network")
        return {
            name: Mask(tuple(tensors[name].shape), text(bits, longest=LONG)).keep if bits else tensors[name] != 0
            for name, bits in data.items()
        }
    except (ValueError, FileError) as error:
        raise FileError(f"what it says of masks does not fit its tensors ({error}).") from None


def _removed(parameter: Tensor) -> Tensor | None:
    """What is held at zero, on the parameter's device."""
    keep: Tensor | None = _HELD.get(parameter)
    if keep is None:
        return None
    if keep.shape != parameter.shape:  # it was cut since: what is zero in it now, stays zero
        keep = _HELD[parameter] = parameter.detach() != 0
    if keep.device != parameter.device:
        keep = _HELD[parameter] = keep.to(parameter.device)
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
