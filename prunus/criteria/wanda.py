"""Magnitude times the norm of the input."""

from torch import Tensor

from prunus.core import Slice
from prunus.criteria.base import criterion

WANDA = "Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024"
FASP = "Hu et al., FASP: Fast and Accurate Structured Pruning of Large Language Models, 2025"


@criterion(
    "wanda", roles={"in"}, needs={"input-norms"}, normalize="max", weights="none", paper=f"{WANDA}; channels: {FASP}"
)
def wanda(s: Slice) -> Tensor:
    r"""Magnitude of a weight times the norm of what it multiplies, $S_{ij} = |W_{ij}| \, \lVert X_j \rVert_2$ (eq. 1).

    `s.weight`: (units, fan) -> the same shape.  The paper compares weights of one output row only, and keeps as many of
    each: ``prunus.tensors(model, rows=True)`` with the allocator ``uniform``, or ``"2:4"``.  Of a channel, FASP's sum
    over the columns that read it, $\sum_i |W_{ij}| \, \lVert X_j \rVert_2$, over all layers that do.
    """
    return s.weight.abs() * s.statistic("input-norms")
