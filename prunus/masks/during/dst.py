"""Hard thresholds that are learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunus.core.checks import a_portion, check_arguments, not_negative
from prunus.masks.moment import Method, methods
from prunus.masks.thresholds import Learned

LEAST = 0.01  # density of a tensor at which its thresholds start again


class Step(torch.autograd.Function):
    """1 where x > 0; its slope is taken as 2 - 4|x| up to 0.4, 0.4 up to 1, then 0 (equation 5)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        size = ctx.saved_tensors[0].abs()
        slope = torch.where(size <= 0.4, 2 - 4 * size, 0.4 * (size <= 1).to(size))
        return grads[0] * slope


def masked_by_row(w: Tensor, t: Tensor) -> Tensor:
    """The weights above the threshold of their row: (rows, ...), (rows,) -> (rows, ...)."""
    stays: Tensor = Step.apply(w.abs() - t.view(-1, *[1] * (w.dim() - 1)))
    return w * stays


@methods.register("dst", paper="Liu et al., Dynamic Sparse Training, ICLR 2020")
def trained_thresholds(density: float, steps: int, *, strength: float = 1e-6, stop: float = 0.75) -> Method:
    r"""DST: forward sees $w \odot [|w| > t_r]$, a learned threshold a row, pushed up by $\alpha \sum e^{-t}$.

    A tensor down to 1 % starts again from $t = 0$.  The density comes from $\alpha$ (1e-6 on CIFAR, 5e-4 on MNIST);
    where that leaves more than the budget after `stop` of the steps, the least go, and the others train on under that
    mask.

    Args: strength: $\alpha$.
    """
    check_arguments(locals(), strength=not_negative, stop=a_portion)
    rule = Learned(masked_by_row, lambda w: w.new_zeros(len(w)), lambda t: strength * (-t).exp().sum(), least=LEAST)
    return Method(rule=rule, decay=0.0, freeze=int(stop * steps))
