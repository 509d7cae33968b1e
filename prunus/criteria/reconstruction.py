"""Selection by what the next layers can be rebuilt from: greedy, matching pursuit and LASSO."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.core import Group
from prunus.core.slices import ROLES
from prunus.criteria.base import criterion
from prunus.observe.moments import Consumer

THINET = "Luo et al., ThiNet, ICCV 2017"
LASSO = "He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017"
RIDGE = 1e-3  # of the mean diagonal, where inputs are collinear


@criterion("thinet", kind="group", roles=ROLES, needs={"moments"}, normalize="mean", paper=THINET)
def thinet(group: Group) -> Tensor:
    r"""Error of the next layers without a unit and those gone before it, chosen greedily (eq. 6).

    $\min_T \sum_s (\sum_{c \in T} \hat x_{sc})^2$ over all output channels, by the Gram matrix of the contributions:
    adding $c$ costs $Q_{cc} + 2 \sum_{t \in T} Q_{ct}$.
    """
    return rising(*greedy(gram(group.statistic("moments"))))


@criterion("thinet-omp", kind="group", roles=ROLES, needs={"moments"}, normalize="mean", paper=f"{THINET}; TPAMI 2018")
def omp(group: Group) -> Tensor:
    r"""Error of the next layers without a unit, where those that explain the output best are chosen first.

    Orthogonal matching pursuit: start from none, add the unit that most reduces $\lVert y - \hat X_S \hat w \rVert^2$,
    fit $\hat w$ again, and so on; a score is by how much the unit reduced it.
    """
    return rising(*pursuit(gram(group.statistic("moments"))))


@criterion("lasso", kind="group", roles=ROLES, needs={"moments"}, normalize="mean", paper=LASSO)
def lasso(group: Group) -> Tensor:
    r"""Largest penalty at which a unit is still used to rebuild the output of the next layers.

    $\min_\beta \tfrac12 \lVert Y - \sum_c \beta_c Z_c \rVert_F^2 + \lambda \lVert \beta \rVert_1$ (eq. 2): the path
    over all $\lambda$ by least angles (scikit-learn), from the Gram matrix of the contributions $Z_c = X_c W_c^T$.
    """
    return entry_penalties(gram(group.statistic("moments")))


def gram(consumers: tuple[Consumer, ...]) -> Tensor:
    r"""Gram matrix of what units contribute, ``(units, units)``: $Q_{cd} = \sum_l \mathrm{tr}(W_c H_{cd} W_d^T)$."""
    total = torch.zeros((), dtype=torch.float64)
    for c in consumers:
        products = (c.weight.mT @ c.weight) * c.moment  # (fan, fan)
        rows = products[c.columns].sum(1)  # (units, fan)
        total = total + rows[:, c.columns].sum(2)
    return total


def greedy(q: Tensor) -> tuple[Tensor, Tensor]:
    """The units in the order in which they go, and the objective after each; by the Gram matrix ``(units, units)``.

    >>> x = torch.tensor([[1, -1, .1], [2, -2, .1]], dtype=torch.float64)
    >>> order, losses = greedy(x.T @ x)
    >>> order[:2].tolist(), [round(v, 2) for v in losses[:2].tolist()]
    ([2, 1], [0.02, 4.42])
    """
    marginal, gone = q.diagonal().clone(), torch.zeros(len(q), dtype=torch.bool)
    order, losses, total = [], [], q.new_zeros(())
    for _ in range(len(q)):
        c = int(torch.where(gone, torch.inf, marginal).argmin())
        total = total + marginal[c]
        gone[c] = True
        order.append(c)
        losses.append(total)
        marginal = marginal + 2 * q[c]
    return torch.tensor(order), torch.stack(losses)


def pursuit(q: Tensor) -> tuple[Tensor, Tensor]:
    """The units in the order in which they go (last chosen first), and the squared residual after each has gone.

    One step of Cholesky a choice: `residual` and `diagonal` are those after the chosen ones are projected out.
    """
    q = q + RIDGE * q.diagonal().mean() * torch.eye(len(q), dtype=q.dtype)
    correlation, rest = q.sum(1), q.clone()
    error = q.sum()
    chosen = torch.zeros(len(q), dtype=torch.bool)
    order, errors = [], [error]
    for _ in range(len(q)):
        gain = correlation.square() / rest.diagonal().clamp(min=1e-300)
        c = int(torch.where(chosen, -torch.inf, gain).argmax())
        share = rest[c] / rest[c, c]
        error = error - correlation[c] * correlation[c] / rest[c, c]
        correlation = correlation - correlation[c] * share
        rest = rest - torch.outer(rest[:, c], share)
        chosen[c] = True
        order.append(c)
        errors.append(error)
    return torch.tensor(order).flip(0), torch.stack(errors[:-1]).flip(0).clamp(min=0)


def entry_penalties(q: Tensor) -> Tensor:
    """``(units,)``: the largest penalty at which each unit's coefficient is not zero.

    >>> entry_penalties(torch.diag(torch.tensor([3., 1., 2.], dtype=torch.float64)))     # orthogonal: soft thresholds
    tensor([3., 1., 2.], dtype=torch.float64)
    """
    from sklearn.linear_model import lars_path_gram

    target = q.sum(1)
    scale = q.diagonal().mean().clamp(min=1e-300)
    ridge = RIDGE * scale * torch.eye(len(q), dtype=q.dtype) if torch.linalg.matrix_rank(q) < len(q) else 0
    alphas, _, path = lars_path_gram(
        (target / scale).numpy(), ((q + ridge) / scale).numpy(), n_samples=1, method="lasso"
    )
    used = torch.from_numpy(path != 0)  # (units, steps): zero at the step where it enters
    alphas = torch.from_numpy(alphas.copy())
    first = torch.where(used.any(1), used.long().argmax(1) - 1, len(alphas) - 1).clamp(min=0)
    return torch.where(used.any(1), alphas[first], 0.0) * scale


def rising(order: Tensor, losses: Tensor) -> Tensor:
    """``(units,)``: what each removal adds to the error, never less than the one before it."""
    scores = torch.empty_like(losses)
    scores[order] = losses.diff(prepend=losses.new_zeros(1)).clamp(min=0).cummax(0).values
    return scores
