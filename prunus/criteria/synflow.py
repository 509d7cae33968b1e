"""The flow through a unit."""

from torch import Tensor

from prunus.core import Slice
from prunus.criteria.base import criterion

PAPER = "Tanaka et al., Pruning Neural Networks without Any Data by Iteratively Conserving Synaptic Flow, NeurIPS 2020"


@criterion("synflow", roles={"out", "bias", "depthwise"}, needs={"flow"}, paper=PAPER)
def synflow(s: Slice) -> Tensor:
    r"""Flow of ones through what makes a unit, $\sum_w |w|\, \partial R / \partial |w|$ (eq. 1); needs no data.

    `s.weight`: (units, fan) -> the same shape.  R is the sum of the outputs for inputs of ones, all weights absolute
    and activations the identity.  What flows into a unit flows out of it, so that the layers that read it are not
    counted again.  Made to be asked anew after every small cut: at once, a narrow layer may be emptied.
    """
    return s.weight.double().abs() * s.statistic("flow")
