"""Optimal Brain Surgeon on the layers that read a unit."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunus.core import Group
from prunus.core.progress import progress
from prunus.core.slices import ROLES
from prunus.criteria.base import criterion
from prunus.criteria.reconstruction import rising
from prunus.observe.moments import Consumer

OBC = "Frantar et al., Optimal Brain Compression, NeurIPS 2022; Hassibi & Stork, Optimal Brain Surgeon, 1993"
RIDGE = 1e-3  # of the mean diagonal of H
BLOCK = 32  # units after which the inverse and the weights are brought up to date


@criterion("obs", kind="group", roles=ROLES, needs={"moments"}, normalize="mean", paper=OBC)
def obs(group: Group) -> Tensor:
    r"""Error that layers make without a unit once their other weights make up for it, removed one by one.

    $\rho_S = \tfrac12 \mathrm{tr}(W_S ([H^{-1}]_{SS})^{-1} W_S^T)$ with the columns $S$ of a unit in every layer that
    reads it; the unit with the least goes, $W \leftarrow W - W_S([H^{-1}]_{SS})^{-1}[H^{-1}]_{S:}$, and so on.  A
    score is the error that the removal added.  Layers of different groups are not comparable: divided by their mean.
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
    layers = [_Layer.of(c, ridge) for c in consumers]
    left = torch.arange(len(consumers[0].columns))
    order, losses, total = [], [], torch.zeros((), dtype=torch.float64)
    gone = torch.zeros(len(left), dtype=torch.bool)
    for step in progress(range(len(left)), "removing units"):
        rho = torch.stack([layer.errors() for layer in layers]).sum(0).masked_fill(gone, torch.inf)  # (left,)
        at = int(rho.argmin())
        total = total + rho[at].clamp(min=0)
        order.append(left[at])
        losses.append(total)
        gone[at] = True
        for layer in layers:
            layer.eliminate(at)
        if (step + 1) % BLOCK == 0:
            for layer in layers:
                layer.settle(~gone)
            left, gone = left[~gone], gone[~gone]
    return torch.stack(order), torch.stack(losses)


@dataclass(eq=False)
class _Layer:
    """A layer's weight and inverse while units go: both less what the units of this block add, column by column.

    Columns are those of the units that are left, unit by unit.  What `errors` needs of every unit, the `blocks` of the
    inverse on its diagonal and the products of its columns, is kept up to date; the matrices are when a block is full.
    """

    weight: Tensor  # (out, columns)
    inverse: Tensor  # (columns, columns)
    m: int  # columns of a unit
    blocks: Tensor = field(init=False)  # (left, m, m): of the inverse
    products: Tensor = field(init=False)  # (left, m, m): of the weight's columns
    went: int = 0  # units of this block, and what is taken off for them:
    rows: Tensor = field(init=False)  # (went * m, columns): of the inverse
    shares: Tensor = field(init=False)  # (went * m, columns)
    weights: Tensor = field(init=False)  # (out, went * m)

    def __post_init__(self) -> None:
        self.settle(torch.ones(len(self.inverse) // self.m, dtype=torch.bool))

    @classmethod
    def of(cls, c: Consumer, ridge: float) -> _Layer:
        damp = ridge * c.moment.diagonal().mean().clamp(min=1e-12) if ridge else 0.0
        inverse = inverse_of(c.moment + damp * torch.eye(len(c.moment), dtype=torch.float64))
        weight = torch.where(c.moment.diagonal() > 0, c.weight, 0.0)  # of an input that never changes nothing is lost
        if c.curvature is not None:  # tr(G A A^T) = |L^T A|^2
            values, vectors = torch.linalg.eigh(c.curvature)
            weight = (values.clamp(min=0).sqrt()[:, None] * vectors.mT) @ weight
        columns = c.columns.flatten()
        return cls(weight[:, columns], inverse[columns][:, columns], c.columns.shape[1])

    def settle(self, stay: Tensor) -> None:
        """Bring the matrices up to date, for the units that `stay` alone."""
        columns = stay.repeat_interleave(self.m).nonzero().flatten()
        if self.went:
            rows, shares, weights = self._gone()
            self.inverse = self.inverse[columns][:, columns].addmm_(rows[:, columns].mT, shares[:, columns], alpha=-1)
            self.weight = self.weight[:, columns].addmm_(weights, shares[:, columns], alpha=-1)
        left, m, self.went = len(columns) // self.m, self.m, 0
        self.rows, self.shares = self.inverse.new_empty(2, BLOCK * m, len(columns))
        self.weights = self.weight.new_empty(len(self.weight), BLOCK * m)
        at = torch.arange(left)
        self.blocks = self.inverse.view(left, m, left, m)[at, :, at].clone()
        units = self.weight.view(len(self.weight), left, m).movedim(0, 2)  # (left, m, out)
        self.products = units @ units.mT

    def errors(self) -> Tensor:
        r"""``(left,)``: :math:`\tfrac12 \mathrm{tr}(B_u^{-1} W_u^T W_u)`; of units that are gone, any number."""
        if self.m == 1:
            return self.products[:, 0, 0] / self.blocks[:, 0, 0] / 2
        return torch.linalg.solve_ex(self.blocks, self.products).result.diagonal(dim1=1, dim2=2).sum(1) / 2

    def eliminate(self, unit: int) -> None:
        """The weights of the others make up for a unit, which leaves the inverse."""
        m, here = self.m, slice(unit * self.m, (unit + 1) * self.m)
        row, weight = self.inverse[here], self.weight[:, here]  # (m, columns), (out, m)
        cross = weight.mT @ self.weight
        if self.went:
            rows, shares, weights = self._gone()
            row = row - rows[:, here].mT @ shares
            weight = weight - weights @ shares[:, here]
            cross = weight.mT @ self.weight - (weight.mT @ weights) @ shares  # W_q^T W
        share = torch.linalg.solve(self.blocks[unit], row)
        x, h, c = (t.view(m, -1, m).transpose(0, 1) for t in (share, row, cross))  # (left, m, m)
        across = c.mT @ x
        self.products = self.products - across - across.mT + x.mT @ self.products[unit] @ x
        self.blocks = self.blocks - h.mT @ x
        there = slice(self.went * m, (self.went + 1) * m)
        self.rows[there], self.shares[there], self.weights[:, there] = row, share, weight
        self.went += 1

    def _gone(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the units that went in this block: their rows of the inverse, what others take over, their weights."""
        n = self.went * self.m
        return self.rows[:n], self.shares[:n], self.weights[:, :n]


def inverse_of(matrix: Tensor) -> Tensor:
    """Of a positive definite matrix, by Cholesky; of any other one (rounding, no ridge), as it comes."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return torch.linalg.inv(matrix) if bool(failed) else torch.cholesky_inverse(factor)
