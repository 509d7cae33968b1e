"""Criteria on how active a unit is, without labels."""

import torch
from torch import Tensor

from prunus.core import Group, InputError
from prunus.core.slices import ROLES
from prunus.criteria.base import criterion

BINS = 100


@criterion(
    "apoz", kind="group", roles=ROLES, needs={"zeros"}, paper="Hu et al., Network Trimming, 2016 (arXiv 1607.03250)"
)
def apoz(group: Group) -> Tensor:
    r"""Fraction of activations that are not zero, $1 - \mathrm{APoZ}_u$ (eq. 1), as layers read them.

    Raises: `InputError` where nothing is ever exactly zero, as after GELU or SiLU, or without an activation.
    """
    zeros: Tensor = group.statistic("zeros")
    if not bool(zeros.any()):
        raise InputError(
            f"criterion 'apoz' counts zeros, and nothing that layers read of group '{group.id}' is ever exactly zero: "
            "it is not behind a ReLU (GELU, SiLU, no activation). Use 'entropy', 'taylor-activation' or 'obs', or "
            f"leave it whole with freeze='{group.id}'."
        )
    return 1 - zeros


ENTROPY = "Luo & Wu, An Entropy-based Pruning Method for CNN Compression, 2017"


@criterion("entropy", kind="group", roles=ROLES, needs={"features"}, paper=ENTROPY)
def entropy(group: Group) -> Tensor:
    r"""Entropy of a unit's mean activation over images, $H_u = -\sum_b p_{ub} \log p_{ub}$ (eq. 3), in 100 bins.

    The bins lie between the least and the greatest mean of the whole group, not of each unit: a nearly dead unit then
    falls into one bin and scores 0, where a range of its own would make noise look rich.
    """
    return entropies(group.statistic("features"), BINS)


def entropies(features: Tensor, bins: int) -> Tensor:
    """``(samples, units)`` -> ``(units,)``, in common bins.

    >>> entropies(torch.tensor([[0., 1.], [0., 1.], [1., 1.], [1., 1.]]), 2)     # log 2, and a constant
    tensor([0.6931, 0.0000], dtype=torch.float64)
    """
    features = features.double()
    low, high = features.min(), features.max()
    width = torch.where(high > low, high - low, torch.ones_like(high))
    bin = ((features - low) / width * bins).long().clamp(max=bins - 1)  # (samples, units)
    counts = torch.zeros(bins, features.shape[1], dtype=torch.float64).scatter_add_(0, bin, torch.ones_like(features))
    return torch.special.entr(counts / len(features)).sum(0)
