"""Optimal Brain Damage, with each of the estimates of the curvature."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from prunus.core import Slice
from prunus.criteria.base import criterion
from prunus.criteria.taylor import GATE

PAPER = "LeCun, Denker, Solla, Optimal Brain Damage, NIPS 1989"
ESTIMATES = {  # name of the criterion -> the statistic, and what it is
    "obd": ("fisher", "the empirical Fisher matrix"),
    "obd-mc": ("mc-fisher", "the Fisher matrix of drawn labels"),
    "obd-gauss-newton": ("gauss-newton", "the Gauss-Newton matrix"),
    "obd-hutchinson": ("hutchinson", "the Hessian, estimated"),
}
REST = """

`s.weight`: (units, fan) -> the same shape; in the units of the loss.  Slices as for 'taylor': scale and shift
alone where a unit is normalised.  Weights that interact are taken as if they did not, and the slope as 0: see
'woodfisher', 'taylor-second'.
"""


def _saliency(statistic: str, what: str) -> Callable[[Slice], Tensor]:
    def obd(s: Slice) -> Tensor:
        return s.statistic(statistic).double() * s.weight.double().square() / 2

    first = rf"Rise of the loss at a minimum (eq. 5) by the diagonal of {what}: $\sum_w h_{{ww}} w^2 / 2$."
    obd.__doc__ = first + REST
    return obd


for _name, (_statistic, _what) in ESTIMATES.items():
    criterion(_name, roles=GATE, once=True, needs={_statistic}, paper=PAPER)(_saliency(_statistic, _what))
