"""What makes the scores of one group comparable with those of another: small functions ``(units,) -> (units,)``.

One that has to see all groups together declares ``of="network"`` and takes groups and scores (`isomorphic`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prunus.core import Registry

normalizers: Registry[Callable[..., Any]] = Registry("normalizer")


@normalizers.register("none")
def none(scores: Tensor) -> Tensor:
    r"""The scores as they are."""
    return scores


@normalizers.register("mean", paper="Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017 (layer-wise ranking)")
def mean(scores: Tensor) -> Tensor:
    r"""Divide by the group's mean absolute score, $s_u / \frac{1}{n}\sum_v |s_v|$: blind to the scale of a layer.

    >>> mean(torch.tensor([1.0, 2.0, 3.0]))
    tensor([0.5000, 1.0000, 1.5000])
    """
    return _divide(scores, scores.abs().mean())


@normalizers.register("max")
def max(scores: Tensor) -> Tensor:
    r"""Divide by the group's largest absolute score, $s_u / \max_v |s_v|$: the best unit of every group scores 1.

    A group whose units are all alike then ranks high, one with a few strong units and a long tail of weak ones low.

    >>> max(torch.tensor([1.0, 2.0, 4.0]))
    tensor([0.2500, 0.5000, 1.0000])
    """
    return _divide(scores, scores.abs().max())


@normalizers.register("rank")
def rank(scores: Tensor) -> Tensor:
    r"""The fraction of the group that scores at most as much, $|\{v : s_v \le s_u\}| / n$.

    >>> rank(torch.tensor([7.0, 5.0, 5.0, 9.0]))
    tensor([0.7500, 0.5000, 0.5000, 1.0000], dtype=torch.float64)
    """
    return torch.searchsorted(scores.sort().values, scores, right=True).double() / len(scores)


@normalizers.register("l2", paper="Molchanov et al., Pruning Convolutional Neural Networks, ICLR 2017")
def l2(scores: Tensor) -> Tensor:
    r"""Divide by the group's Euclidean norm, $s_u / \sqrt{\sum_v s_v^2}$.

    >>> l2(torch.tensor([3.0, 4.0]))
    tensor([0.6000, 0.8000])
    """
    return _divide(scores, scores.norm())


@normalizers.register("sum", paper="Lee et al., SNIP, ICLR 2019")
def sum(scores: Tensor) -> Tensor:
    r"""Divide by the group's sum of absolute scores, $s_u / \sum_v |s_v|$.

    >>> sum(torch.tensor([1.0, 3.0]))
    tensor([0.2500, 0.7500])
    """
    return _divide(scores, scores.abs().sum())


@normalizers.register("lamp", paper="Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021")
def lamp(scores: Tensor) -> Tensor:
    r"""Layer-adaptive magnitude, $s_u / \sum_{v : s_v \ge s_u} s_v$ with $s$ the energy (squared norm) of a unit.

    The best unit of every group scores 1, so that no group is emptied.  The sums run over those not yet removed, added
    up directly (total minus cumulated would lose precision); ties by order of the units.

    >>> lamp(torch.tensor([1.0, 4.0, 9.0]))        # 1/14, 4/13, 1
    tensor([0.0714, 0.3077, 1.0000])
    """
    order = scores.argsort(stable=True)
    rest = scores[order].flip(0).cumsum(0).flip(0)
    out = torch.empty_like(scores)
    out[order] = scores[order] / torch.where(rest > 0, rest, torch.ones_like(rest))
    return out


def _divide(scores: Tensor, by: Tensor) -> Tensor:
    """`scores / by`, where a group of zeros stays zero."""
    return scores / torch.where(by > 0, by, torch.ones_like(by))
