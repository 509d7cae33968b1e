"""Soft thresholds that are learned."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.core.checks import a_number, a_portion, check_arguments, not_negative
from prunus.masks.moment import Method, methods
from prunus.masks.thresholds import Learned


def soft(w: Tensor, s: Tensor) -> Tensor:
    r"""$\mathrm{sign}(w)\,\mathrm{relu}(|w| - \sigma(s))$.

    >>> soft(torch.tensor([-1.0, 0.2, 0.7]), torch.tensor(0.0))
    tensor([-0.5000,  0.0000,  0.2000])
    """
    return w.sign() * (w.abs() - s.sigmoid()).relu()


@methods.register("str", paper="Kusupati et al., Soft Threshold Weight Reparameterization, ICML 2020")
def soft_threshold(
    density: float, steps: int, *, initial: float = -5.0, decay: float = 5e-4, stop: float = 0.75
) -> Method:
    r"""STR: forward sees $\mathrm{sign}(w)\,\mathrm{relu}(|w| - \sigma(s_l))$ with one learned $s_l$ a tensor (eq. 6).

    The density comes from `initial` and the weight decay of $s$ (ImageNet at 10 %: -3200 and 2.25e-5); where that
    leaves more than the budget after `stop` of the steps, the least go, and the others train on under that mask.
    """
    check_arguments(locals(), initial=a_number, decay=not_negative, stop=a_portion)
    rule = Learned(soft, lambda w: torch.full((), initial, dtype=w.dtype, device=w.device))
    return Method(rule=rule, decay=decay, freeze=int(stop * steps))
