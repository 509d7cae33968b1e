"""Optimal Brain Surgeon on the layers that read a unit."""

import torch
from torch import Tensor

from prunus.core import Group
from prunus.core.slices import ROLES
from prunus.criteria.base import criterion
from prunus.criteria.reconstruction import rising
from prunus.observe.moments import Consumer

OBC = "Frantar et al., Optimal Brain Compression, NeurIPS 2022; Hassibi & Stork, Optimal Brain Surgeon, 1993"
RIDGE = 1e-3  # of the mean diagonal of H


@criterion("obs", kind="group", roles=ROLES, needs={"moments"}, normalize="sum", paper=OBC)
def obs(group: Group) -> Tensor:
    r"""Error that layers make without a unit once their other weights make up for it, removed one by one.

    $\rho_S = \tfrac12 \mathrm{tr}(W_S ([H^{-1}]_{SS})^{-1} W_S^T)$ with the columns $S$ of a unit in every layer that
    reads it; the unit with the least goes, $W \leftarrow W - W_S([H^{-1}]_{SS})^{-1}[H^{-1}]_{S:}$, and so on.  A
    score is the error that the removal added.  Layers of different groups are not comparable: divided by their sum.
    """
    return removal_scores(group.statistic("moments"))


@criterion("obs-fisher", kind="group", roles=ROLES, needs={"curved-moments"}, per="macs", paper=OBC)
def obs_fisher(group: Group) -> Tensor:
    r"""Expected rise of the loss without a unit once other weights make up for it, for every multiply-add saved.

    As `obs`, with every layer's error weighed by the curvature $G$ of the loss at its output:
    $\rho_S = \tfrac12 \mathrm{tr}(G W_S ([H^{-1}]_{SS})^{-1} W_S^T)$.  Needs no labels: they are
    drawn from the predictions.
    """
    return removal_scores(group.statistic("curved-moments"))


def removal_scores(consumers: tuple[Consumer, ...]) -> Tensor:
    """``(units,)``: what the removal of each unit adds to the error, in an order where that never falls."""
    return rising(*removal(consumers))


def removal(consumers: tuple[Consumer, ...], ridge: float = RIDGE) -> tuple[Tensor, Tensor]:
    r"""Greedy block OBS: units in the order in which they go ``(units,)``, and the error after each ``(units,)``.

    >>> h = torch.tensor([[1, .9, 0], [.9, 1, 0], [0, 0, .5]], dtype=torch.float64)
    >>> order, losses = removal((Consumer(torch.ones(1, 3).double(), h, torch.arange(3)[:, None]),), ridge=0)
    >>> order[0].item(), round(losses[0].item(), 3)
    (0, 0.095)
    """
    states = []
    for c in consumers:
        damp = ridge * c.moment.diagonal().mean().clamp(min=1e-12) if ridge else 0.0
        inverse = torch.linalg.inv(c.moment + damp * torch.eye(len(c.moment), dtype=torch.float64))
        weight = torch.where(c.moment.diagonal() > 0, c.weight, 0.0)  # of an input that never changes nothing is lost
        if c.curvature is not None:  # tr(G A A^T) = |L^T A|^2
            values, vectors = torch.linalg.eigh(c.curvature)
            weight = (values.clamp(min=0).sqrt()[:, None] * vectors.mT) @ weight
        states.append([weight, inverse, c.columns])
    left = torch.arange(len(consumers[0].columns))
    order, losses, total = [], [], torch.zeros((), dtype=torch.float64)
    while len(left):
        rho = torch.stack([_rho(w, inv, columns[left]) for w, inv, columns in states]).sum(0)  # (left,)
        at = int(rho.argmin())
        gone = left[at]
        total = total + rho[at].clamp(min=0)
        order.append(gone)
        losses.append(total)
        left = torch.cat([left[:at], left[at + 1 :]])
        for state in states:
            state[0], state[1] = _eliminate(state[0], state[1], state[2][gone])
    return torch.stack(order), torch.stack(losses)


def _rho(weight: Tensor, inverse: Tensor, columns: Tensor) -> Tensor:
    """``(n,)`` of the blocks of columns ``(n, m)``."""
    blocks = inverse[columns[:, :, None], columns[:, None, :]]  # (n, m, m)
    w = weight[:, columns].permute(1, 2, 0)  # (n, m, out)
    return (w * torch.linalg.solve(blocks, w)).sum((1, 2)) / 2


def _eliminate(weight: Tensor, inverse: Tensor, gone: Tensor) -> tuple[Tensor, Tensor]:
    """The other weights make up for the columns `gone`, which leave the inverse."""
    share = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])  # (m, fan)
    weight = weight - weight[:, gone] @ share
    inverse = inverse - inverse[:, gone] @ share
    inverse = (inverse + inverse.mT) / 2
    weight[:, gone] = 0
    return weight, inverse
