"""Taylor expansion of the loss in the weights of a unit."""

from torch import Tensor

from prunus.core import Slice
from prunus.criteria.base import criterion

PAPER = "Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019"
GATE = {"out", "bias", "depthwise", "norm_scale", "norm_shift", "in"}  # in series they hold one gate, which counts once


@criterion("taylor", roles=GATE, once=True, needs={"grad"}, finish="square", paper=PAPER)
def taylor(s: Slice) -> Tensor:
    r"""First-order change of the loss without a unit, squared, $I_u = (\sum_w w \, \partial L / \partial w)^2$ (eq. 8).

    `s.weight`, `s.grad`: (units, fan) -> the same shape.  Of layers in series the last one before those that read the
    unit counts: where that is a norm, it is $(\gamma g_\gamma + \beta g_\beta)^2$; of a product (a gated feed-forward),
    the weights that read it; of query and key, half of each.  The gradient is that of the mean loss, squared
    afterwards; for the mean of squares over samples see `taylor-gate`.
    """
    return s.weight * s.grad


@criterion("taylor-weight", roles=GATE, once=True, needs={"grad"}, paper=PAPER)
def taylor_weight(s: Slice) -> Tensor:
    r"""First-order change of the loss by each weight, squared, $I_u = \sum_w (w \, \partial L / \partial w)^2$.

    Equation 7 summed over the weights of a unit; `s.weight`, `s.grad`: (units, fan) -> the same shape.  Slices as for
    `taylor`.
    """
    return (s.weight * s.grad).square()


@criterion(
    "snip",
    roles=GATE,
    once=True,
    needs={"grad"},
    finish="abs",
    paper="Lee et al., SNIP: Single-shot Network Pruning based on Connection Sensitivity, ICLR 2019",
)
def snip(s: Slice) -> Tensor:
    r"""Sensitivity of the loss to a gate on a unit, $s_u = |\sum_w w \, \partial L / \partial w|$ (eq. 6 for a unit).

    The paper divides by the sum over all weights, which changes no order.  Made for untrained networks: on a trained
    one the gradient is close to noise.
    """
    return s.weight * s.grad
