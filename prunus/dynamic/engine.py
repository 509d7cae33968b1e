"""A network with gates in the sparse engine: gates, lists and convolutions are kernels, with no return to Python."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunus.core import InputError
from prunus.core.checks import check_arguments
from prunus.core.wrappers import unwrapped
from prunus.dynamic.network import gates


def by_lists(model: nn.Module, example_inputs: Any, *, threads: int = 1) -> nn.Module:
    """A network with gates, compiled: every input is computed with the channels that its gates leave on.

    This is `prunus.runtime.compile` for a network that must have gates.  Outputs are those of the masked network, to
    rounding, for inputs of the example's size and any number of them, which are run one by one; a channel whose
    saliency lies within rounding of a threshold may be on in the one and off in the other.  `report()` of the result
    says which layers are ``listed`` and which are ``masked``: computed whole, since their zeros save more than lists
    do at the share of channels that is on for `example_inputs`.

    Args:
        example_inputs: what forward takes, inputs such as the network will get.
        threads: of the engine.

    Raises: `InputError` for a network without gates, or in training mode; what `prunus.runtime.compile` raises.

    >>> import prunus, torch
    >>> net, x = prunus.zoo.resnet20().eval(), torch.randn(1, 3, 32, 32)
    >>> _ = prunus.dynamic.dynamic_(net, x, "fbs")
    >>> len(by_lists(net, x).report()["listed"])
    18
    """
    check_arguments(locals())
    from prunus.runtime import compile

    gates(model)
    if unwrapped(model).training:
        raise InputError("the network is in training mode, in which nothing can be skipped: model.eval().")
    return compile(unwrapped(model), example_inputs, threads=threads)
