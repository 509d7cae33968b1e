"""A warm start: saliencies that begin as how strong the channels of a trained network are, which begins as it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import InputError
from prunus.core.callbacks import each, forward
from prunus.core.checks import check_arguments
from prunus.core.inputs import Inputs
from prunus.core.running import removed, undisturbed
from prunus.core.undo import all_or_nothing, keep_values
from prunus.core.wrappers import unwrapped
from prunus.dynamic.gate import Gate, wide
from prunus.dynamic.network import _of, gates, opened
from prunus.dynamic.places import NORM_KINDS, Place

LEAST = 0.05  # of a layer's mean saliency, at which a channel that is always zero begins


@torch.no_grad()
def warm_start_(model: nn.Module, batches: Iterable[Any]) -> list[str]:
    r"""Let saliencies begin at $s_c = \sqrt{\overline{F_c^2}}$, by which the map $F$ is divided; their mean is one.

    The mean of $F_c^2$ is over inputs and positions, behind the activation.  If all saliencies began at one, it would
    be an accident which channels the first thresholds turn off; so it is the weakest.  The bias of the last linear
    layer of a gate becomes $s$, its weight zero, and the scale and shift of the norm (or the convolution) in front of
    the mask are divided by $s$: the network computes what it did, to rounding.  Where an activation that is no
    rectifier lies between, saliencies begin at one.

    Args:
        batches: what forward takes, or ``(x, y)``; a few hundred inputs are enough.

    Returns: the layers whose saliencies begin at one.

    Raises: `InputError` without a batch, or for gates whose saliencies are no factors (channel-gating).

    >>> import prunus, torch
    >>> net, x = prunus.zoo.resnet20().eval(), torch.randn(8, 3, 32, 32)
    >>> before, found = net(x), prunus.dynamic.dynamic_(net, x)
    >>> warm_start_(net, [x])
    []
    >>> torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-4)
    """
    check_arguments(locals())
    model = unwrapped(model)
    places = _of(model).placement.places
    lasts = [_last(gate) for gate in gates(model)]
    with undisturbed(model), opened(model), _squares(model, places) as sums:
        for batch in each(batches):
            pair = isinstance(batch, (tuple, list)) and len(batch) == 2
            forward(model, Inputs.of(batch[0] if pair else batch), "a batch of the data")
    if not sums:
        raise InputError("warm_start_: there is no batch of inputs.")
    ones = []
    with all_or_nothing(model):
        for place, last in zip(places, lasts, strict=True):
            strength = sums[place.layer].sqrt()
            scale = (strength / strength.mean().clamp(min=1e-12)).clamp(min=LEAST).to(last.bias)
            maker = _maker(model, place)
            if maker is None:
                ones.append(place.layer)
                scale = torch.ones_like(scale)
            else:
                for parameter in (maker.weight, maker.bias):
                    if parameter is not None:
                        keep_values(parameter)
                        parameter.div_(scale.reshape([-1] + [1] * (parameter.dim() - 1)))
            keep_values(last.weight, last.bias)
            nn.init.zeros_(last.weight)
            last.bias.copy_(scale)
        return ones


@contextmanager
def _squares(model: nn.Module, places: Sequence[Place]) -> Iterator[dict[str, Tensor]]:
    """By layer, the sums of the squares of its masked map, ``(C,)``, over all that is run."""
    sums: dict[str, Tensor] = {}

    def add(layer: str, y: Tensor) -> None:
        sums[layer] = sums.get(layer, 0) + wide(y).square().sum([0, *range(2, y.dim())])

    hooks = (
        model.get_submodule(p.site).register_forward_hook(lambda _, __, y, layer=p.layer: add(layer, y)) for p in places
    )
    with all_or_nothing(model), removed(hooks):
        yield sums


def _last(gate: Gate) -> nn.Linear:
    """The linear layer whose bias is the saliency when its weight is zero."""
    last = [m for m in gate.modules() if isinstance(m, nn.Linear)][-1]
    if not gate.scales:
        raise InputError(f"the saliencies of a {type(gate).__name__} are no factors of channels; it begins all open.")
    return last


def _maker(model: nn.Module, place: Place) -> Any:
    """The last module before the mask whose parameters scale the channels; None where the mask does not commute."""
    for name in reversed(place.chain):
        module = model.get_submodule(name)
        if isinstance(module, NORM_KINDS):
            return module if module.weight is not None else None
        if name == place.layer or name in place.depthwise:
            return module
        if not isinstance(module, nn.ReLU):
            return None
    return None
