"""Optimal Brain Surgeon for units, with the inverse of the Fisher matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.core import Group
from prunus.criteria.base import criterion
from prunus.observe.sample_grad import MEMORY, PRODUCERS

PAPER = "Singh, Alistarh, WoodFisher: Efficient Second-Order Approximation for Neural Network Compression, NeurIPS 2020"
DAMPING = 1e-5


@criterion("woodfisher", kind="group", roles=PRODUCERS, needs={"sample-grad"}, paper=PAPER)
def woodfisher(group: Group) -> Tensor:
    r"""Rise of the loss when a unit goes and others make up for it: $\frac12 w_S^T ([F^{-1}]_{SS})^{-1} w_S$.

    $F = \lambda I + \frac1N \sum_n g_n g_n^T$ is over all weights that produce the units of the group (over those of
    the unit alone nothing could make up for it), S those of one unit, $\lambda = 10^{-5}$.  N is at most 128 samples.
    """
    weight = torch.cat([s.weight.double().cpu() for s in group.slices], 1)  # (units, fan)
    return unit_saliency(weight, group.statistic("sample-grad").double().cpu(), DAMPING)


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
