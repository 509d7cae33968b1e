"""Second-order Taylor expansion of the loss in the weights of a unit."""

from torch import Tensor

from prunus.core import Slice
from prunus.criteria.base import criterion
from prunus.criteria.taylor import GATE, PAPER


@criterion("taylor-second", roles=GATE, once=True, needs={"grad", "fisher"}, finish="square", paper=PAPER)
def taylor_second(s: Slice) -> Tensor:
    r"""Second-order change of the loss without a unit, squared, $(\sum_w g w - \tfrac12 h_{ww} w^2)^2$ (eq. 3).

    `s.weight`, `s.grad`: (units, fan) -> the same shape.  h is the empirical Fisher diagonal; slices as for
    `taylor`.
    """
    w = s.weight.double()
    return w * s.grad - s.statistic("fisher") * w.square() / 2
