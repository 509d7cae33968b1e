"""The element-wise importance of LLM-Pruner, summed over everything that goes with a unit."""

from torch import Tensor

from prunus.core import Slice
from prunus.criteria.base import criterion

LLM_PRUNER = "Ma et al., LLM-Pruner: On the Structural Pruning of Large Language Models, NeurIPS 2023"


@criterion("llm-pruner", roles={"out", "bias", "in", "depthwise"}, needs={"grad", "fisher"}, paper=LLM_PRUNER)
def llm_pruner(s: Slice) -> Tensor:
    r"""Absolute second-order change of the loss, weight by weight, $\sum_w |g w - \tfrac12 \bar{g_n^2} w^2|$ (eq. 5).

    `s.weight`, `s.grad`: (units, fan) -> the same shape; $\bar{g_n^2}$ is the mean over samples of squared gradients.
    All slices of a group count, those that read the unit as well, as in the source.
    """
    w = s.weight.double()
    return (w * s.grad - s.statistic("fisher") * w.square() / 2).abs()
