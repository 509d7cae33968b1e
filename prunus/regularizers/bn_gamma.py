"""The L1 penalty of network slimming."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunus.core.checks import a_flag, check_arguments
from prunus.regularizers.base import Regularizer, regularizers

PAPER = "Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017"


@regularizers.register("bn-gamma", paper=PAPER)
def bn_gamma(strength: float = 1e-4, proximal: bool = False) -> Regularizer:
    r"""L1 penalty on the scales of normalisations, $\lambda \sum_\gamma |\gamma|$ (equation 1).

    As a subgradient, $\nabla_\gamma \mathrel{+}= \lambda\,\mathrm{sign}(\gamma)$ with $\mathrm{sign}(0) = 0$; or
    as a proximal map after the step, $\gamma \leftarrow \mathrm{sign}(\gamma)\max(|\gamma| - \eta\lambda, 0)$ with the
    current learning rate $\eta$, which gives exact zeros.  Weight decay on the scales is the optimizer's own: at
    $\gamma = 0.5$ a decay of 1e-4 already pulls with 5e-5.

    Raises: `InputError` unless `strength` is a finite number >= 0.

    >>> bn_gamma(0.5).gradient([torch.tensor([2.0, -1.0, 0.0])])[0]
    tensor([ 0.5000, -0.5000,  0.0000])
    >>> bn_gamma(0.5, proximal=True).proximal([torch.tensor([2.0, -1.0, 0.1])], 1.0)[0]
    tensor([ 1.5000, -0.5000,  0.0000])
    """
    check_arguments(locals(), proximal=a_flag)

    def gradient(gammas: Sequence[Tensor]) -> Sequence[Tensor]:
        return torch._foreach_mul(torch._foreach_sign(list(gammas)), strength)

    def shrink(gammas: Sequence[Tensor], lr: float) -> Sequence[Tensor]:
        left = torch._foreach_sub(torch._foreach_abs(list(gammas)), lr * strength)
        return torch._foreach_mul(torch._foreach_sign(list(gammas)), torch._foreach_clamp_min(left, 0.0))

    roles = frozenset({"norm_scale"})
    return Regularizer(roles, None, shrink) if proximal else Regularizer(roles, gradient, None)
