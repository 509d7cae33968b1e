"""Scale of the normalisation that follows a unit."""

from torch import Tensor

from prunus.core import Slice
from prunus.criteria.base import criterion

PAPER = "Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017"


@criterion("bn-gamma", roles={"norm_scale"}, across="mean", paper=PAPER)
def bn_gamma(s: Slice) -> Tensor:
    r"""Mean absolute normalisation scale of a unit, $s_u = \frac{1}{|B|} \sum_{b \in B} |\gamma_{b,u}|$.

    `s.weight`: (units, m), the scales of the `m` channels of each unit -> the same shape.  Several normalisations share
    their units where their outputs are summed (residual stages): their mean counts.  Never normalised by itself: one
    threshold over all layers is the method; the scales tell something only after training with the bn-gamma
    regularizer.
    """
    return s.weight.abs() / s.weight.shape[1]
