"""L1 norm of filters."""

from torch import Tensor

from prunus.core import Slice
from prunus.criteria.base import criterion

PAPER = "Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017"


@criterion("l1", roles={"out", "depthwise"}, across="sum", normalize="max", weights="none", paper=PAPER)
def l1(s: Slice) -> Tensor:
    r"""Sum of the absolute weights that produce a unit, $s_u = \sum_w |w|$ (section 3).

    `s.weight`: (units, fan) -> the same shape.  Producers that share their units (a residual sum, a depthwise kernel
    and the convolution before it) count as one long filter; kernels only, not biases.  Norms of layers with another
    fan-in are not comparable, so that scores are divided by the largest of the group, unless told otherwise; magnitudes
    of single weights are compared as they are.
    """
    return s.weight.abs()
