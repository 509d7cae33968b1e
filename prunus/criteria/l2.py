"""L2 norm of filters."""

from torch import Tensor

from prunus.core import Slice
from prunus.criteria.base import criterion

PAPER = "Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017"


@criterion("l2", roles={"out", "depthwise"}, across="sum", finish="sqrt", normalize="max", weights="none", paper=PAPER)
def l2(s: Slice) -> Tensor:
    r"""Euclidean norm of the weights that produce a unit, $s_u = \sqrt{\sum_w w^2}$.

    `s.weight`: (units, fan) -> the same shape.  Producers that share their units (a residual sum, a depthwise kernel
    and the convolution before it) count as one long filter; kernels only, not biases.  Norms of layers with another
    fan-in are not comparable, so that scores are divided by the largest of the group, unless told otherwise; magnitudes
    of single weights are compared as they are.
    """
    return s.weight.square()
