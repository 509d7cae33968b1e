"""Densities by the shapes of the tensors: Erdos-Renyi with kernels."""

from __future__ import annotations

from torch import Tensor

from prunus.allocators.base import Problem, allocators
from prunus.allocators.uniform import ranks


@allocators.register("erk", paper="Evci et al., Rigging the Lottery: Making All Tickets Winners, ICML 2020")
def erk(problem: Problem) -> Tensor:
    r"""Keep of every tensor the density $d_l = \min(1, \epsilon \sum \mathrm{shape} / \prod \mathrm{shape})$, by score.

    $\epsilon$ is the largest that meets the budget: the unit that stays as the $p$-th of $n$ does so from
    $\epsilon = p \prod / (n \sum)$ on, which is what units are ranked by.  Small tensors stay dense.  Made for single
    weights; of channels, the shape is that of the group's first tensor.  Returns the keep mask ``(units,)``.
    """
    ranking = {}
    for group in problem.scored:
        tensor, scores = group.slices[0].tensor, problem.scores[group.id]
        place = len(scores) + 1 - ranks(group, scores)  # 1 is the best
        ranking[group.id] = -place / len(scores) * tensor.numel() / sum(tensor.shape)
    return problem.remove_lowest(ranking, problem.scores)
