"""Fluctuation of what layers read: a unit that is always the same can be replaced by its mean."""

import torch
from torch import Tensor

from prunus.core import Group
from prunus.core.slices import ROLES
from prunus.criteria.base import criterion
from prunus.observe.moments import Consumer

FLAP = "An et al., Fluctuation-based Adaptive Structured Pruning for Large Language Models, AAAI 2024"


@criterion("flap", kind="group", roles=ROLES, needs={"moments"}, paper=FLAP)
def flap(group: Group) -> Tensor:
    r"""Variance of a unit times the squared norm of the weights that read it, in standard scores of the reading layer.

    $I_c = \mathrm{Var}(x_c) \, \lVert W_{:c} \rVert_2^2$ for every input channel $c$ of a layer (eq. 5, WIFV), then
    $(I_c - \bar I) / \sigma_I$ over all channels of the layer (eq. 6), then the mean over the channels of a unit (the
    dimensions of a head) and over the layers that read it: ``(units,)``, no dimension.  It is the error that is left
    once the mean of the unit went into the bias: `prune_(..., repair="bias")`.  What a unit costs is no part of the
    score: the budget counts it.

    >>> h = torch.diag(torch.tensor([1.0, 4.0, 0.0], dtype=torch.float64))
    >>> fluctuation(Consumer(torch.tensor([[2.0, 1.0, 9.0]]).double(), h, torch.arange(3)[:, None])).tolist()
    [4.0, 4.0, 0.0]
    """
    layers = group.statistic("moments")
    return torch.stack([standard(fluctuation(c))[channels(c)].mean(1) for c in layers]).mean(0)


def fluctuation(consumer: Consumer) -> Tensor:
    r"""$\mathrm{Var}(x_c) \lVert W_{:c} \rVert^2$ of every input channel of a layer, summed over its kernel: (in,)."""
    columns = consumer.moment.diagonal() * consumer.weight.square().sum(0)  # (fan,)
    return columns.reshape(-1, consumer.kernel).sum(1)


def channels(consumer: Consumer) -> Tensor:
    """``(units, m)``: the input channels of every unit."""
    return consumer.columns[:, :: consumer.kernel] // consumer.kernel


def standard(values: Tensor) -> Tensor:
    """Distance from the mean in standard deviations; zeros where all are alike."""
    away = values - values.mean()
    spread = away.square().mean().sqrt()
    return away / spread if spread > 1e-12 * values.abs().max() else torch.zeros_like(values)
