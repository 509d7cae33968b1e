"""The same fraction of every group."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.allocators.base import Problem, allocators


@allocators.register("uniform")
def uniform(problem: Problem) -> Tensor:
    r"""Remove the same fraction of every dimension, its lowest scores.

    The unit of rank $r$ (from 1) of $n$ goes at the fraction $f = 1 - (1 - r/n)^k$, where $k$ is the number of groups
    whose units are multiplied in one dimension: 1 for channels, 2 for heads and head dimensions, so that their product
    keeps $1 - f$ as well, and not its square.  Returns the keep mask ``(units,)``.
    """
    factors = problem.groups.factors
    return problem.remove_lowest(
        {id: 1 - (1 - ranks(scores) / len(scores)) ** factors[id] for id, scores in problem.scores.items()}
    )


def ranks(scores: Tensor) -> Tensor:
    """Ranks from 1, ties by order: ``(units,)`` -> ``(units,)``.

    >>> ranks(torch.tensor([0.3, 0.1, 0.3]))
    tensor([2., 1., 3.], dtype=torch.float64)
    """
    out = torch.empty(len(scores), dtype=torch.float64)
    out[scores.argsort(stable=True)] = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    return out
