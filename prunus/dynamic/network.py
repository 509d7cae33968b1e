"""Gates in a network: put there in place, found again, opened, watched, written to files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from prunus.core import InputError
from prunus.core.checks import anything, check_arguments, instance
from prunus.core.undo import all_or_nothing
from prunus.core.wrappers import unwrapped
from prunus.dynamic.gate import Gate, Seen
from prunus.dynamic.method import Method, method_of, methods
from prunus.dynamic.places import Placement, placement
from prunus.dynamic.reading import read_gates
from prunus.surgery.attached import Attachment, attachments
from prunus.tracing import trace

GATE = "dynamic_gate"  # the child of a convolution that holds its gate
_ATTRIBUTE = "_prunus_dynamic"


@dataclass(frozen=True)
class Dynamic:
    """What a network with gates remembers of them: the method, and where they are.

    Attributes:
        placement: the gates, and the layers that they save work of.
    """

    method: Method
    placement: Placement

    def __str__(self) -> str:
        return str(self.placement)


def dynamic_(model: nn.Module, example_inputs: Any, method: str | Method = "manidp", **options: Any) -> Dynamic:
    r"""Give `model` gates, in place, so that it prunes itself for every input.

    Behind every convolution that the trace allows (see `placement`), channels are multiplied by
    $\hat\pi_{nc}$, zero for those that are off; which those are, a gate of the method says from what goes into the
    convolution.  A gate is a child of its convolution; every name of the network stays.  Cut channels for all inputs
    alike first (`prunus.prune_`), then call this: gates of a network that is cut afterwards would not fit.

    Args:
        example_inputs: what forward takes: a tensor, a tuple of positional inputs, or `Inputs`.
        method: a name in `prunus.dynamic.methods` with `options` for its fields, or a `Method`.

    Returns: the method, and the places by module names (print it).

    Raises: `NothingToPruneError` when no layer can be gated; `InputError` when the network has gates already, or for
    an option that is not one; `UnknownNameError`; what `trace` raises.

    Sources: Tang et al., CVPR 2021 (manidp); Gao et al., ICLR 2019 (fbs); Bejnordi et al., ICLR 2020 (channel-gating).

    >>> import prunus, torch
    >>> net = prunus.zoo.resnet20()
    >>> print(str(dynamic_(net, torch.randn(1, 3, 32, 32), keep=0.6)).splitlines()[0])
    18 gates
    >>> net(torch.randn(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    check_arguments(
        locals(), method=instance("the name of a method, or one made by prunus.dynamic", str, Method), options=anything
    )
    model = unwrapped(model)
    if dynamic_of(model) is not None:
        raise InputError("this network has gates already; take them off first: prunus.dynamic.static_(model).")
    if options and isinstance(method, Method):
        raise InputError(f"options {sorted(options)} go with the name of a method; this one is made already.")
    chosen = method_of(method, options)
    return attach_(model, Dynamic(chosen, placement(model, trace(model, example_inputs))))


def attach_(model: nn.Module, dynamic: Dynamic) -> Dynamic:
    """New gates as `dynamic` says; every gate lives where its convolution does."""
    with all_or_nothing(model):
        for place in dynamic.placement.places:
            layer = model.get_submodule(place.layer)
            gate = dynamic.method.gate(place.inputs, place.outputs)
            gate.relu = place.relu
            layer.add_module(GATE, gate.to(next(layer.parameters())).train(layer.training))
            layer.register_forward_pre_hook(gate.before)
            model.get_submodule(place.site).register_forward_hook(gate.after)
        vars(model)[_ATTRIBUTE] = dynamic
        return dynamic


def static_(model: nn.Module) -> None:
    """Take every gate off: the network is the backbone again."""
    check_arguments(locals())
    model = unwrapped(model)
    with all_or_nothing(model):
        for place, gate in zip(_of(model).placement.places, gates(model), strict=True):
            layer, site = model.get_submodule(place.layer), model.get_submodule(place.site)
            for hooks in (layer._forward_pre_hooks, site._forward_hooks):
                for key in [k for k, hook in hooks.items() if getattr(hook, "__self__", None) is gate]:
                    del hooks[key]
            delattr(layer, GATE)
        del vars(model)[_ATTRIBUTE]


def dynamic_of(model: nn.Module) -> Dynamic | None:
    """What a network remembers of its gates; None when it has none."""
    check_arguments(locals())
    found = vars(unwrapped(model)).get(_ATTRIBUTE)
    return found if isinstance(found, Dynamic) else None


def gates(model: nn.Module) -> list[Gate]:
    """The gates of a network in order of execution; raises `InputError` when it has none."""
    check_arguments(locals())
    model = unwrapped(model)
    found = [getattr(model.get_submodule(p.layer), GATE) for p in _of(model).placement.places]
    assert all(isinstance(gate, Gate) for gate in found)
    return found


def gate_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of all gates, for a parameter group of their own (without weight decay); empty without gates."""
    check_arguments(locals())
    return [p for gate in gates(model) for p in gate.parameters()] if dynamic_of(model) is not None else []


@contextmanager
def opened(model: nn.Module) -> Iterator[nn.Module]:
    """All gates open, all saliencies one: the network is its backbone, to the bit.

    >>> import prunus, torch
    >>> net, x = prunus.zoo.resnet20().eval(), torch.randn(2, 3, 32, 32)
    >>> before, found = net(x), dynamic_(net, x)
    >>> with opened(net):
    ...     bool((net(x) == before).all())
    True
    """
    check_arguments(locals())
    found = gates(model)
    try:
        for gate in found:
            gate.open = True
        yield model
    finally:
        for gate in found:
            gate.open = False


@contextmanager
def watched(model: nn.Module) -> Iterator[list[list[Seen]]]:
    """What every gate does, in order: a list a gate with one `Seen` a forward."""
    check_arguments(locals())
    found = gates(model)
    tapes: list[list[Seen]] = [[] for _ in found]
    try:
        for gate, tape in zip(found, tapes, strict=True):
            gate.tape = tape
        yield tapes
    finally:
        for gate in found:
            gate.tape = None


def _of(model: nn.Module) -> Dynamic:
    found = dynamic_of(model)
    if found is None:
        raise InputError(f"this {type(model).__name__} has no gates; prunus.dynamic.dynamic_(model, example) first.")
    return found


def _describe(model: nn.Module) -> str | None:
    """The gates of a network as JSON."""
    dynamic = dynamic_of(model)
    if dynamic is None:
        return None
    name = methods.find(type(dynamic.method)).name
    return json.dumps({"method": name, "options": asdict(dynamic.method), "placement": dynamic.placement.to_dict()})


def _attach(model: nn.Module, text: str) -> None:
    """Gates as JSON describes them; raises `FileError` when it is not of this network."""
    attach_(model, Dynamic(*read_gates(model, text)))


UNCUT = (
    "its gates are as wide as its layers and would not fit once they are cut. Cut first and give it gates then "
    "(prunus.prune_, then prunus.dynamic.dynamic_), or take them off: prunus.dynamic.static_(model)."
)
attachments["dynamic"] = Attachment(GATE, _describe, _attach, UNCUT)
