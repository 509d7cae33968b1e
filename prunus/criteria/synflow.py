"""The flow through a unit."""

from torch import Tensor

from prunus.core import Slice
from prunus.criteria.base import criterion

PAPER = "Tanaka et al., Pruning Neural Networks without Any Data by Iteratively Conserving Synaptic Flow, NeurIPS 2020"


@criterion("synflow", roles={"out", "bias", "depthwise", "in"}, once=True, needs={"flow"}, paper=PAPER)
def synflow(s: Slice) -> Tensor:
    r"""Flow of ones through a unit, $\sum_w |w|\, \partial R / \partial |w|$ (eq. 1); needs no data.

    `s.weight`: (units, fan) -> the same shape.  R is the sum of the outputs for inputs of ones, all weights absolute
    and activations the identity.  What flows into a unit flows out of it, so that of layers in series one counts, and
    of the factors of a product what reads it.  Made to be asked anew after every small cut: at once, a narrow layer may
    be emptied.
    """
    return s.weight.double().abs() * s.statistic("flow")
