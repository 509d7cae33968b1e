"""Criteria on the loss of every sample as a function of gates on the units."""

from torch import Tensor

from prunus.core import Group
from prunus.core.slices import ROLES
from prunus.criteria.base import criterion

THEIS = "Theis et al., Faster Gaze Prediction with Dense Networks and Fisher Pruning, 2018"


@criterion(
    "taylor-activation",
    kind="group",
    roles=ROLES,
    needs={"gate"},
    normalize="l2",
    paper="Molchanov et al., Pruning Convolutional Neural Networks for Resource Efficient Inference, ICLR 2017",
)
def taylor_activation(group: Group) -> Tensor:
    r"""Mean absolute first-order change of the loss without a unit, $\frac1N \sum_n |g_{nu}|$ (eq. 7).

    $g_{nu} = \sum_m z_{num} \, \partial L_n / \partial z_{num}$, absolute after the sum over positions and before the
    mean over samples; divided by the Euclidean norm of the group (eq. 8).  On heads it is the
    importance of Michel et al., NeurIPS 2019.
    """
    return group.statistic("gate").double().abs().mean(0)


@criterion(
    "taylor-gate",
    kind="group",
    roles=ROLES,
    needs={"gate"},
    paper="Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019",
)
def taylor_gate(group: Group) -> Tensor:
    r"""Squared slope of the loss by a gate on a unit, mean over samples, $\frac1N \sum_n g_{nu}^2$ (eq. 8)."""
    return group.statistic("gate").double().square().mean(0)


@criterion("fisher", kind="group", roles=ROLES, needs={"gate"}, paper=THEIS)
def fisher(group: Group) -> Tensor:
    r"""Expected rise of the loss without a unit, $\Delta_u = \frac{1}{2N} \sum_n g_{nu}^2$ (eq. 9).

    The order of `taylor-gate`, in the units of the loss.
    """
    return group.statistic("gate").double().square().mean(0) / 2


@criterion(
    "group-fisher",
    kind="group",
    roles=ROLES,
    needs={"gate"},
    per="macs",
    paper="Liu et al., Group Fisher Pruning for Practical Network Compression, ICML 2021",
)
def group_fisher(group: Group) -> Tensor:
    r"""Expected rise of the loss for every multiply-add saved, $\Delta_u / \Delta C_u$ (eq. 8 and section 3.4).

    The slopes of all layers that read a unit are added, with their signs, before they are squared.
    """
    return fisher(group)
