"""One ranking over the whole network."""

from __future__ import annotations

from torch import Tensor

from prunus.allocators.base import Problem, allocators


@allocators.register(
    "global", paper="Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017"
)
def global_(problem: Problem) -> Tensor:
    r"""Remove the lowest scores of the whole network, wherever they are.

    Unit $u$ stays iff $s_u$ is not among the $k$ lowest, with the least $k$ that meets the budget.  Count-based: ties
    never take more than needed.  Returns the keep mask ``(units,)``.
    """
    return problem.remove_lowest(problem.scores)
