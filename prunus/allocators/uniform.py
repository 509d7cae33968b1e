"""The same fraction of every group."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.allocators.base import Problem, allocators
from prunus.core import Group


@allocators.register("uniform")
def uniform(problem: Problem) -> Tensor:
    r"""Remove the same fraction of every dimension, its lowest scores.

    The unit of rank $r$ (from 1) of $n$ goes at the fraction $f = 1 - (1 - r/n)^k$, where $k$ is the number of groups
    whose units are multiplied in one dimension: 1 for channels, 2 for heads and head dimensions, so that their product
    keeps $1 - f$ as well, and not its square.  Returns the keep mask ``(units,)``.
    """
    factors = problem.groups.factors
    ranking = {
        id: 1 - (1 - ranks(problem.groups[id], scores) / len(scores)) ** factors[id]
        for id, scores in problem.scores.items()
    }
    return problem.remove_lowest(ranking, problem.scores)


def ranks(group: Group, scores: Tensor) -> Tensor:
    """Ranks from 1, ties by order ``(units,)``; those of a group of one part in order: scores say which unit is which.

    >>> ranks(Group("fc", 3, (), parts=3), torch.tensor([0.3, 0.1, 0.3]))
    tensor([2., 1., 3.], dtype=torch.float64)
    """
    places = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    if group.parts == 1:
        return places
    return torch.empty(len(scores), dtype=torch.float64).scatter_(0, scores.cpu().argsort(stable=True), places)
