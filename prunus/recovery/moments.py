r"""Least squares of one layer from sums over its rows, which need none of the rows once they are counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Of the mean variance of the inputs, as they are tried; of equals the first is taken.
RIDGES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3)
GIANT = 100.0  # times the median of the rows' mean squares: above it a row counts as much as the median one


@dataclass(eq=False)
class Moments:
    r"""Weighted sums over rows :math:`x` and what they shall give, :math:`t`, in float64; `add` counts rows.

    Attributes:
        weight: :math:`\sum_n a_n`.
        x, t: :math:`\sum_n a_n x_n` ``(groups, fan)`` and :math:`\sum_n a_n t_n` ``(groups, out)``.
        xx, xt: :math:`\sum_n a_n x_n x_n^T` ``(groups, fan, fan)`` and :math:`\sum_n a_n x_n t_n^T`
            ``(groups, fan, out)``.
    """

    weight: Tensor | float = 0.0
    x: Tensor | float = 0.0
    t: Tensor | float = 0.0
    xx: Tensor | float = 0.0
    xt: Tensor | float = 0.0

    def add(self, x: Tensor, target: Tensor, share: Tensor | None = None) -> None:
        """Count rows `x` ``(groups, n, fan)`` that shall give `target` ``(n, groups * out)``, `share` ``(n,)`` each."""
        x = x.double()
        t = target.double().reshape(len(target), len(x), -1).movedim(1, 0)  # (groups, n, out)
        a = x.new_ones(x.shape[1]) if share is None else share.double()
        weighted = x * a[:, None]
        self.weight = self.weight + a.sum()
        self.x = self.x + weighted.sum(1)
        self.t = self.t + (t * a[:, None]).sum(1)
        self.xx = self.xx + weighted.mT @ x
        self.xt = self.xt + weighted.mT @ t

    def join(self, other: Moments) -> None:
        """Count the rows of another as well."""
        for name in ("weight", "x", "t", "xx", "xt"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def error(self, weight: Tensor, bias: Tensor) -> float:
        r""":math:`\sum_n a_n (\lVert t_n - W x_n - b \rVert^2 - \lVert t_n \rVert^2)`, of what `solve` returned."""
        x, t = torch.as_tensor(self.x), torch.as_tensor(self.t)
        b = bias.reshape(t.shape)
        squares = (weight @ self.xx * weight).sum() - 2 * (weight.mT * self.xt).sum()
        return float(squares + (b * (2 * ((weight @ x[..., None])[..., 0] - t) + self.weight * b)).sum())

    def solve(self, prior: Tensor, *, ridge: float, intercept: bool = True) -> tuple[Tensor, Tensor]:
        """As `least_squares`, of the rows that were counted."""
        x, t = torch.as_tensor(self.x) / self.weight, torch.as_tensor(self.t) / self.weight
        gram, cross = torch.as_tensor(self.xx) / self.weight, torch.as_tensor(self.xt) / self.weight
        if intercept:
            gram = gram - x[:, :, None] * x[:, None]
            cross = cross - x[:, :, None] * t[:, None]
        damp = ridge * gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)[:, None, None]
        eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        weight = torch.linalg.solve(gram + damp * eye, cross + damp * prior.mT).mT
        bias = t - (weight @ x[..., None])[..., 0] if intercept else torch.zeros_like(t)
        return weight, bias.reshape(-1)


def least_squares(
    x: Tensor,
    target: Tensor,
    prior: Tensor,
    *,
    ridge: float,
    intercept: bool = True,
    share: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The weights that best give `target` from `x`, and their intercept, close to a `prior`.

    .. math:: W = (T^T A X + \lambda W_0)(X^T A X + \lambda I)^{-1}, \qquad b = \bar t - W \bar x

    with `x` and `target` centred where there is an intercept, :math:`\lambda` = `ridge` times the mean square of x, and
    rows that count by their `share` :math:`A = \mathrm{diag}(a) / \sum_n a_n`.

    Args:
        x: ``(groups, n, fan)``; `target`: ``(n, groups * out)``; `prior`: ``(groups, out, fan)``; `share`: ``(n,)``.

    Returns: ``(groups, out, fan)`` and ``(groups * out,)``.

    >>> x = torch.tensor([[[1.], [2.], [4.]]], dtype=torch.float64)
    >>> w, b = least_squares(x, 3 * x[0] + 1, torch.zeros(1, 1, 1, dtype=torch.float64), ridge=0)
    >>> round(w.item(), 6), round(b.item(), 6)
    (3.0, 1.0)
    """
    moments = Moments()
    moments.add(x, target, share)
    return moments.solve(prior, ridge=ridge, intercept=intercept)


def chosen_ridge(fit: Moments, held: Moments, prior: Tensor, *, intercept: bool = True) -> float:
    r"""The one of `RIDGES` whose solution on the rows of `fit` errs least on those of `held`.

    .. math:: \rho^* = \arg\min_\rho \sum_{n \in \text{held}} a_n \lVert t_n - W_\rho x_n - b_\rho \rVert^2

    Inputs of a language model's layers are mostly near zero and rarely large: with four rows for every unknown and a
    ridge of 1e-3 the error was a twentieth of the cut's on these rows, and above it on other text.
    Without held-out rows the largest is taken.

    >>> fit, alike, other = Moments(), Moments(), Moments()
    >>> x, one = torch.tensor([[[1.], [2.], [4.]]]), torch.ones(1, 1, 1, dtype=torch.float64)
    >>> fit.add(x, 3 * x[0])
    >>> alike.add(x, 3 * x[0])
    >>> other.add(x, x[0])
    >>> chosen_ridge(fit, alike, one), chosen_ridge(fit, other, one)
    (0.001, 10.0)
    """
    if not float(held.weight):
        return RIDGES[0]
    return min(RIDGES, key=lambda ridge: held.error(*fit.solve(prior, ridge=ridge, intercept=intercept)))


def shares(rows: Tensor) -> Tensor:
    r"""How much every row of ``(n, out)`` counts: ``(n,)``, 1 but for giants.

    A row whose mean square :math:`t_n^2` is over `GIANT` times the median :math:`m` (of those that are not zero) counts
    :math:`m / t_n^2`, as much as a row of the median.  The first tokens of language models have squares up to
    :math:`10^6` times as large as the others (Sun et al., "Massive Activations in Large Language Models", COLM 2024),
    and would decide alone; what stands behind, a norm, sees of every row the direction.

    >>> shares(torch.tensor([[1.], [-1.], [2.], [100.]])).tolist()
    [1.0, 1.0, 1.0, 0.0001]
    """
    squares = rows.double().square().mean(1)
    some = squares[squares > 0]
    if not len(some):
        return torch.ones_like(squares)
    return torch.where(squares > GIANT * some.median(), some.median() / squares, 1.0)
