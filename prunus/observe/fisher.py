"""Three estimates of the diagonal of the curvature, all means of squared gradients of single samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from prunus.observe.average import average, parameters_of
from prunus.observe.base import Seen, collectors, inputs_of
from prunus.observe.samples import Losses, class_scores, sample_gradients

SEED = 0


@collectors.register("fisher", labels=True)
def fisher(seen: Seen) -> dict[str, Tensor]:
    r"""Empirical Fisher diagonal, $\frac{1}{N} \sum_n (\partial \ell_n / \partial w)^2$, with the true labels.

    The square is of each sample's gradient: the square of a batch's mean gradient is another, far smaller, number.  It
    tends to 0 where every sample is fitted, whatever the curvature is there.  Returns ``{parameter: its shape}``.
    """
    return _mean_squares(seen, lambda out, batch: [seen.value(out, batch, inputs_of(batch).batch)])


@collectors.register("mc-fisher")
def mc_fisher(seen: Seen) -> dict[str, Tensor]:
    r"""Fisher diagonal with labels drawn from the network's own prediction, $\hat y_n \sim p(z_n)$; needs no labels.

    $\frac{1}{N} \sum_n (\partial \ell(z_n, \hat y_n) / \partial w)^2$: for a softmax its expectation is the diagonal of
    the Gauss-Newton matrix.  One draw a sample, from a generator of its own.
    """
    on_ranks = distributed.is_available() and distributed.is_initialized()
    draw = torch.Generator().manual_seed(SEED + (distributed.get_rank() if on_ranks else 0))

    def losses(out: Any, batch: Any) -> list[Tensor]:
        logits = class_scores(out, "mc-fisher")
        p = logits.detach().double().softmax(1)
        drawn = torch.multinomial(p.cpu(), 1, generator=draw)[:, 0].to(p.device)
        return [F.cross_entropy(logits, drawn, reduction="none")]

    return _mean_squares(seen, losses)


@collectors.register("gauss-newton")
def gauss_newton(seen: Seen) -> dict[str, Tensor]:
    r"""Exact Gauss-Newton diagonal of the softmax cross-entropy, $\mathbb{E}\,[J^T (\mathrm{diag}\,p - pp^T) J]_{ii}$.

    With $SS^T = \mathrm{diag}\,p - pp^T$ for $S = \mathrm{diag}\sqrt p - p \sqrt p^T$, it is the sum of the squares of
    $J^T S_k$ over the columns $S_k = \sqrt{p_k} (e_k - p)$: one backward pass a class.  Needs no labels.
    """

    def losses(out: Any, batch: Any) -> Iterator[Tensor]:
        logits = class_scores(out, "gauss-newton")
        p = logits.detach().softmax(1)
        for k in range(p.shape[1]):
            column = p[:, k : k + 1].sqrt() * (F.one_hot(torch.tensor(k, device=p.device), p.shape[1]) - p)
            yield (logits * column).sum(1)

    return _mean_squares(seen, losses)


def _mean_squares(seen: Seen, losses: Losses) -> dict[str, Tensor]:
    """The squared gradients, summed over the losses, in the mean over samples."""
    parameters = parameters_of(seen.groups)

    def sums() -> Iterator[tuple[str, Tensor | None, int]]:
        for number, rows, size in sample_gradients(seen, losses):
            yield from ((name, g.square().sum(0), 0) for name, g in rows)
            if number == 0:
                yield from ((name, None, size) for name, of in seen.handles(parameters).items() if of)

    return average(parameters, sums())
