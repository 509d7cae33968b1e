"""Layer-adaptive magnitude."""

from torch import Tensor

from prunus.core import Slice
from prunus.criteria.base import criterion

PAPER = "Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021"


@criterion("lamp", roles={"out", "depthwise"}, normalize="lamp", paper=PAPER)
def lamp(s: Slice) -> Tensor:
    r"""Energy of a unit over that of all units not below it, $s_u = w_u^2 / \sum_{v : w_v^2 \ge w_u^2} w_v^2$ (eq. 3).

    `s.weight`: (units, fan) -> the same shape; squares, summed over a unit, then the normaliser ``lamp``.  For single
    weights, with the allocator ``global``, the method of the paper; for channels the energy is that of the filter.
    """
    return s.weight.square()
