"""The form in which a network is run, where it trains in another one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.prune import remove as remove_mask
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from prunus.core.checks import check_arguments, sequence
from prunus.core.inputs import Inputs


@dataclass(frozen=True)
class Form:
    """Networks that train in a form of their own.

    `found` tells whether a network is one; `make` gives, of a copy in evaluation mode that it may change, and of
    inputs, the network that is run in its place, which computes the same, and what was done, in words.
    """

    found: Callable[[nn.Module], bool]
    make: Callable[[nn.Module, Inputs], tuple[nn.Module, list[str]]]


forms: dict[str, Form] = {}  # filled by the rooms whose networks train in another form than they are run in


@dataclass(frozen=True, eq=False)
class Inference:
    """A network as it is run.

    Attributes:
        model: the network given where it trains as it is run, else another one that computes the same.
        notes: what was done to it, in words; empty where nothing was.
    """

    model: nn.Module
    notes: tuple[str, ...] = ()


@torch.no_grad()
def inference_form(model: nn.Module, example_inputs: Any, *, reads: Collection[str] = ()) -> Inference:
    r"""The network as it is run: what is timed and counted, which may be less than what trains.

    Filters in a basis are put together, $h = \sum_n \lambda_n g^{(n)}$ (``"bases"``); weights that torch's own masks,
    norms and parametrizations compute anew in every forward are computed once (``"parametrizations"``); networks with
    gates skip the channels that are off (``"gates"``).  The model itself is left as it is.

    Args:
        example_inputs: what forward takes.
        reads: kinds that stay, since who runs the network makes what is best of them itself: prunus's engine reads
            bases and gates.

    >>> import prunus
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3))
    >>> report = prunus.interspace_(net)
    >>> found = prunus.measure.inference_form(net, torch.zeros(1, 3, 9, 9))
    >>> type(found.model[0]) is nn.Conv2d, found.notes
    (True, ('weights in a basis are folded (1)',))
    """
    check_arguments(locals(), reads=sequence("names of forms", lambda v: isinstance(v, str)))
    inputs, notes = Inputs.of(example_inputs), list[str]()
    for kind, form in forms.items():
        if kind not in reads and form.found(model):
            model, said = form.make(copied(model).eval(), inputs)
            notes += said
    return Inference(model, tuple(notes))


def makes_weights(module: nn.Module) -> bool:
    """Whether a module computes weights, which `inference_form` does once: its multiply-adds are of no sample."""
    return isinstance(module, parametrize.ParametrizationList) or bool(getattr(module, "makes_weights", False))


def copied(model: nn.Module) -> nn.Module:
    """A deep copy, also where modules keep tensors that they have computed, which torch does not copy.

    >>> layer = torch.nn.utils.prune.l1_unstructured(nn.Linear(4, 2), "weight", 0.5)
    >>> bool((copied(layer).weight == layer.weight).all())
    True
    """
    kept = [v for module in model.modules() for v in vars(module).values() if isinstance(v, Tensor) and not v.is_leaf]
    return copy.deepcopy(model, {id(v): v.detach().clone() for v in kept})


# torch's hooks that compute a weight before every forward, and what makes it a plain one
OLD: dict[type, Callable[[nn.Module, Any], Any]] = {
    BasePruningMethod: lambda module, hook: remove_mask(module, hook._tensor_name),
    WeightNorm: lambda module, hook: remove_weight_norm(module, hook.name),
    SpectralNorm: lambda module, hook: remove_spectral_norm(module, hook.name),
}


def _hooks(module: nn.Module) -> list[Any]:
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, tuple(OLD))]


def _computed(module: nn.Module) -> int:
    """How many of its weights a module computes in every forward by torch's own means."""
    made: Any = module.parametrizations if parametrize.is_parametrized(module) else ()
    return len(made) + len(_hooks(module))


@torch.enable_grad()  # without, torch makes buffers of what it computes
def _compute_once(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, list[str]]:
    count = sum(map(_computed, model.modules()))
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            kind = type(module)  # of the module that it was copied from as well: torch takes the property out of it
            module.__class__ = type(kind.__name__, kind.__bases__, {**vars(kind)})
            made: Any = module.parametrizations
            for name in list(made):
                for leaf, original in list(made[name].named_parameters(recurse=False)):
                    own = nn.Parameter(original.detach().clone())  # a tied one would be computed of what is computed
                    setattr(made[name], leaf, own)
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
        for hook in _hooks(module):
            next(undo for kind, undo in OLD.items() if isinstance(hook, kind))(module, hook)
    return model, [f"weights that a parametrization or mask makes are computed once ({count})"]


forms["parametrizations"] = Form(lambda model: any(map(_computed, model.modules())), _compute_once)
