"""Optimal Brain Surgeon for weights and units, with the inverse of the Fisher matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.core import ELEMENTS, Group
from prunus.criteria.base import criterion
from prunus.observe.sample_grad import MEMORY, PRODUCERS

PAPER = "Singh, Alistarh, WoodFisher: Efficient Second-Order Approximation for Neural Network Compression, NeurIPS 2020"
DAMPING = 1e-5
BLOCK = 2000  # weights of a tensor that can make up for each other


@criterion("woodfisher", kind="group", roles=PRODUCERS, once=True, needs={"sample-grad"}, weights="none", paper=PAPER)
def woodfisher(group: Group) -> Tensor:
    r"""Rise of the loss when a unit goes and others make up for it: $\frac12 w_S^T ([F^{-1}]_{SS})^{-1} w_S$.

    $F = \lambda I + \frac1N \sum_n g_n g_n^T$ is over the weights that produce the units of the group (over those of
    the unit alone nothing could make up for it; where they are multiplied, over the weights that read the product), S
    those of one unit, $\lambda = 10^{-5}$.  N is at most 128 samples.

    Of single weights it is $w_q^2 / (2 [F^{-1}]_{qq})$, ranked over all tensors, with F in diagonal blocks of 2000
    weights of a tensor; weights that are zero (masked) make up for nothing.
    """
    weight = torch.cat([s.weight.double().cpu() for s in group.slices], 1)  # (units, fan)
    gradients = group.statistic("sample-grad")  # (N, units, fan)
    if group.slices[0].dim != ELEMENTS:
        return unit_saliency(weight, gradients.double().cpu(), DAMPING)
    units = max(1, BLOCK // weight.shape[1])
    return torch.cat(
        [
            block_saliency(w, g.double().cpu() * (w != 0), DAMPING)
            for w, g in zip(weight.split(units), gradients.split(units, 1))
        ]
    )


def block_saliency(weight: Tensor, gradients: Tensor, damping: float) -> Tensor:
    r"""As `unit_saliency`, for units of few weights: a system of fan x fan a unit.

    With the gradients as rows of $G$ (N, c) and $L L^T = \lambda N I + G G^T$,
    $F^{-1} = \frac1\lambda (I - A^T A)$, $A = L^{-1} G$.

    >>> g = torch.tensor([[1.0, 2], [3, -1]]).double()[:, :, None]
    >>> [round(x.item(), 4) for x in block_saliency(torch.ones(2, 1).double(), g, 0.5)]
    [2.7083, 1.4773]
    """
    samples, units, fan = gradients.shape
    flat = gradients.flatten(1)
    eye = torch.eye(max(samples, fan), dtype=flat.dtype)
    factor = torch.linalg.cholesky(flat @ flat.T + damping * samples * eye[:samples, :samples])
    a = torch.linalg.solve_triangular(factor, flat, upper=False).view(samples, units, fan).transpose(0, 1)
    inverses = (eye[:fan, :fan] - a.mT @ a) / damping  # (units, fan, fan)
    return (weight * torch.linalg.solve(inverses, weight)).sum(1) / 2


def unit_saliency(weight: Tensor, gradients: Tensor, damping: float) -> Tensor:
    r"""``(units,)`` from weights ``(units, fan)`` and gradients ``(N, units, fan)``.

    No matrix of the size of the weights is made.  By the identity of Woodbury, with the gradients as columns of $G_S$,

    $([F^{-1}]_{SS})^{-1} = \lambda I + \lambda\, G_S (\lambda N I + \sum_{T \ne S} G_T^T G_T)^{-1} G_S^T$,

    a system of N x N a unit, for as many units at a time as fit in 2 GB.

    >>> g = torch.tensor([[1.0, 2], [3, -1]]).double()[:, :, None]  # F^-1 = [[.18462, .03077], [.03077, .33846]]
    >>> [round(x.item(), 4) for x in unit_saliency(torch.ones(2, 1).double(), g, 0.5)]
    [2.7083, 1.4773]
    """
    samples = len(gradients)
    g = gradients.transpose(0, 1)  # (units, N, fan)
    slopes = (g @ weight[:, :, None])[:, :, 0]  # g_n . w_S
    flat = gradients.flatten(1)
    whole = flat @ flat.T + damping * samples * torch.eye(samples, dtype=flat.dtype)
    step = max(1, MEMORY // (3 * 8 * samples**2))
    fitted = torch.cat([torch.linalg.solve(whole - u @ u.mT, y) for u, y in zip(g.split(step), slopes.split(step))])
    return damping / 2 * (weight.square().sum(1) + (slopes * fitted).sum(1))
