"""What a unit does for the norm of the gradient."""

from torch import Tensor

from prunus.core import Slice
from prunus.criteria.base import criterion
from prunus.criteria.taylor import GATE

PAPER = "Wang, Zhang, Grosse, Picking Winning Tickets Before Training by Preserving Gradient Flow, ICLR 2020"


@criterion("grasp", roles=GATE, once=True, needs={"hessian-gradient"}, paper=PAPER)
def grasp(s: Slice) -> Tensor:
    r"""Fall of the gradient's squared norm without a unit, halved: $\sum_w w \, (Hg)_w$ (eq. 8, sign turned).

    `s.weight`: (units, fan) -> the same shape.  The paper removes the largest $-w\,(Hg)_w$, as is done here.  Negative:
    without the unit the gradient is larger, so that it goes before one that does nothing.  Made for untrained
    networks; the paper divides logits by 200, which a loss= can do.
    """
    return s.weight.double() * s.statistic("hessian-gradient")
