"""Scale of the normalisation that follows a unit."""

from torch import Tensor

from prunus.core import Slice
from prunus.criteria.base import criterion

PAPER = "Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017"


@criterion("bn-gamma", roles={"norm_scale"}, across="path", paper=PAPER)
def bn_gamma(s: Slice) -> Tensor:
    r"""Absolute normalisation scale of a unit, $s_u = \max_{b \in B} \prod_{l \in b} |\gamma_{l,u}|$.

    `s.weight`: (units, m), the scales of the `m` channels of each unit -> the same shape; their mean counts.  Several
    normalisations share their units where their outputs are summed (the branches $b$ of residual stages): a unit is
    needed when one of them needs it, so the largest counts.  Those in series (around a depthwise convolution) multiply:
    it is dead when one of them is zero.  Never normalised by itself: one threshold over all layers is the method; the
    scales tell something only after training with the bn-gamma regularizer.
    """
    return s.weight.abs() / s.weight.shape[1]
