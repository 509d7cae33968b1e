"""What makes the scores of one group comparable with those of another: small functions ``(units,) -> (units,)``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prunus.core import Registry

normalizers: Registry[Callable[[Tensor], Tensor]] = Registry("normalizer")


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
    r"""The fraction of the group that scores at most as much, $r_u / n$ with ranks from 1; ties by order of the units.

    >>> rank(torch.tensor([7.0, 5.0, 5.0, 9.0]))
    tensor([0.7500, 0.2500, 0.5000, 1.0000], dtype=torch.float64)
    """
    order = scores.argsort(stable=True)
    ranks = torch.empty(len(scores), dtype=torch.float64)
    ranks[order] = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    return ranks / len(scores)


def _divide(scores: Tensor, by: Tensor) -> Tensor:
    """`scores / by`, where a group of zeros stays zero."""
    return scores / torch.where(by > 0, by, torch.ones_like(by))
