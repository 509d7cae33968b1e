"""Channels that the next layers need to be rebuilt and to tell classes apart: greedy, by the gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.core import Group
from prunus.core.slices import ROLES
from prunus.criteria.base import criterion
from prunus.criteria.reconstruction import RIDGE, rising
from prunus.observe.moments import Consumer

PAPER = "Zhuang et al., Discrimination-aware Channel Pruning for Deep Neural Networks, NeurIPS 2018"


@criterion("dcp", kind="group", roles=ROLES, needs={"discriminated-moments"}, normalize="rank", paper=PAPER)
def dcp(group: Group) -> Tensor:
    r"""How much a channel lowers reconstruction and classification loss when channels are added greedily.

    From none, the channel with the largest $\lVert \partial L / \partial W_c \rVert_F$ is added, summed over the layers
    that read the units, and the weights of those chosen are fitted again (algorithm 2);
    $L = \frac{1}{2Q} \lVert O^b - O \rVert^2 + \lambda L_S$ with $\lambda = 1$ (eq. 4).  The score is by how much the
    loss then fell: what DCP-Adapt compares with its tolerance (eq. 8).  It ranks within a group, as the paper keeps the
    same share of every layer: whatever the allocator, each group loses the same fraction (``rank``).

    $L_S$, the cross-entropy of the next of up to three heads inside the network, is taken to second order at the
    original weights, so that the fit is exact and not some steps of gradient descent.  Left to fine-tuning: the paper
    trains the network together with each head before it selects, and with the channels that stay afterwards.
    """
    return rising(*discriminating(group.statistic("discriminated-moments")))


def discriminating(consumers: tuple[Consumer, ...], weight: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""The units in the order in which they go (last chosen first), and the rise of the loss after each has gone.

    With $H = E[x x^T]$, slope $S$ and curvature $C$ of $L_S$, and $M = I / n_\text{out} + \lambda C$,

    $L(W) = \tfrac12 \mathrm{tr}(M (W - W_0) H (W - W_0)^T) + \lambda \langle S, W - W_0 \rangle$,

    whose slope is $M (W H - T)$ with $T = W_0 H - \lambda M^{-1} S$, and least on the columns $A$ at $T_A H_{AA}^{-1}$.

    Args:
        weight: $\lambda$.

    >>> w = torch.tensor([[1., 3., 2.]], dtype=torch.float64)
    >>> layer = Consumer(w, torch.eye(3, dtype=torch.float64), torch.arange(3)[:, None])
    >>> discriminating((layer,))[0]                           # orthonormal inputs: the smallest true column goes first
    tensor([0, 2, 1])
    """
    states = [State(c, weight) for c in consumers]
    units = len(consumers[0].columns)
    chosen = torch.zeros(units, dtype=torch.bool)
    order, gains = [], []
    for _ in range(units):
        slope = torch.stack([state.slopes for state in states]).sum(0)
        u = int(torch.where(chosen, -torch.inf, slope).argmax())
        gain = torch.stack([state.add(u) for state in states]).sum()
        chosen[u] = True
        order.append(u)
        gains.append(gain)
    return torch.tensor(order).flip(0), torch.stack(gains).flip(0).cumsum(0)


class State:
    """What one layer still asks for, once the units chosen so far are fitted."""

    def __init__(self, c: Consumer, weight: float) -> None:
        out, fan = c.weight.shape
        self.columns, self.moment = c.columns, c.moment
        metric = torch.eye(out, dtype=torch.float64, device=c.weight.device) / out
        self.rest = c.weight @ c.moment  # T - W H, (out, fan)
        if c.curvature is not None and c.slope is not None:
            metric = metric + weight * c.curvature
            self.rest = self.rest - weight * torch.linalg.solve(metric, c.slope)
        self.slope = metric @ self.rest  # M (T - W H), (out, fan)
        self.ridge = RIDGE * c.moment.diagonal().mean().clamp(min=1e-300)
        self.factor = c.moment.new_empty(fan, fan)  # rows of the Cholesky factor of H + ridge, in the order chosen
        self.rows = 0

    @property
    def slopes(self) -> Tensor:
        """The norm of the slope of the loss by the weights of every unit, ``(units,)``."""
        return self.slope.square().sum(0)[self.columns].sum(1).sqrt()

    def add(self, unit: int) -> Tensor:
        """Fit the weights of one more unit, and all before it; by how much the loss falls."""
        own, before = self.columns[unit], self.factor[: self.rows]
        left = self.moment[own] - before[:, own].mT @ before  # (m, fan)
        left[torch.arange(len(own)), own] += self.ridge
        root = torch.linalg.cholesky(left[:, own])
        new = torch.linalg.solve_triangular(root, left, upper=False)
        rest, slope = (torch.linalg.solve_triangular(root, t[:, own].mT, upper=False) for t in (self.rest, self.slope))
        self.rest -= rest.mT @ new
        self.slope -= slope.mT @ new
        self.factor[self.rows : self.rows + len(own)] = new
        self.rows += len(own)
        return (rest * slope).sum() / 2
