"""The same fraction of every group."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.allocators.base import Problem, allocators


@allocators.register("uniform")
def uniform(problem: Problem) -> Tensor:
    r"""Remove the same fraction of every group, its lowest scores: unit of rank $r$ (from 1) of $n$ goes at $r / n$.

    The global ranking of ranks within groups; a group of $n$ units loses $\lfloor f n \rfloor$ at the fraction $f$.
    Returns the keep mask ``(units,)``.
    """
    return problem.remove_lowest({id: ranks(scores) / len(scores) for id, scores in problem.scores.items()})


def ranks(scores: Tensor) -> Tensor:
    """Ranks from 1, ties by order: ``(units,)`` -> ``(units,)``.

    >>> ranks(torch.tensor([0.3, 0.1, 0.3]))
    tensor([2., 1., 3.], dtype=torch.float64)
    """
    out = torch.empty(len(scores), dtype=torch.float64)
    out[scores.argsort(stable=True)] = torch.arange(1, len(scores) + 1, dtype=torch.float64)
    return out
