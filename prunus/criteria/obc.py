"""Optimal Brain Surgeon on single weights, one output row at a time."""

import torch
from torch import Tensor

from prunus.core import Group
from prunus.core.progress import progress
from prunus.criteria.base import criterion
from prunus.criteria.obs import inverse_of

PAPER = "Frantar et al., Optimal Brain Compression, NeurIPS 2022"
RIDGE = 1e-2  # of the mean diagonal of H
MEMORY = 512 << 20  # bytes that the inverses of some rows together take, before and after a block
BLOCK = 128  # steps that are taken off the inverses at once


@criterion("obc", kind="group", roles={"out"}, needs={"input-moments"}, normalize="sum", weights="sum", paper=PAPER)
def obc(group: Group) -> Tensor:
    r"""Error of a layer's output by the removal of each weight, the others of its row making up for it, one by one.

    The weight of a row with the least $w_p^2 / (2 [H^{-1}]_{pp})$ goes, $w \leftarrow w - w_p H^{-1}_{:p} /
    [H^{-1}]_{pp}$ (eq. 3), and so on; a score is the error that the removal added, never less than the one before it,
    so that one threshold over all rows is right.  $H = E[x x^T]$, damped.  Layers are not comparable: divided by their
    sum.  The kept weights are updated by ``prunus.mask_(..., repair="exact")``, which comes out the same.
    """
    total = torch.zeros(group.units, dtype=torch.float64)
    for s in group.slices:
        moment, turned = group.statistic("input-moments")[s.name]
        stored = s.tensor.double()
        rows = (stored.t() if turned else stored).flatten(1)
        scores = torch.cat([removal_errors(w, h) for w, h in zip(rows.chunk(len(moment)), moment)])  # (out, fan)
        total += s.view((scores.t() if turned else scores).reshape(stored.shape)).sum(1).cpu()
    return total


def removal_errors(weight: Tensor, moment: Tensor, ridge: float = RIDGE) -> Tensor:
    r"""What the removal of every weight adds to the error, greedily.

    `weight`: ``(rows, fan)``, `moment`: ``(fan, fan)`` -> ``(rows, fan)``.

    The elimination of $p$ takes $u u^T$ off the inverse, $u = H^{-1}_{:p} / \sqrt{[H^{-1}]_{pp}}$: a Cholesky
    factorisation with a pivot of its own for every row, of which only the vectors $u$ and the diagonal are kept.

    >>> h = torch.tensor([[1, .9, 0], [.9, 1, 0], [0, 0, .5]], dtype=torch.float64)
    >>> removal_errors(torch.ones(1, 3).double(), h, ridge=0)[0]
    tensor([0.0950, 1.8050, 0.2500], dtype=torch.float64)
    """
    fan = weight.shape[1]
    dead = moment.diagonal() <= 0
    damp = ridge * moment.diagonal().mean().clamp(min=1e-30)
    eye = torch.eye(fan, dtype=moment.dtype, device=moment.device)
    inverse = inverse_of(moment + damp * eye + torch.diag(dead.to(moment.dtype)))
    weight = weight.masked_fill(dead, 0)  # what always multiplies the same is nothing lost
    most = max(MEMORY // (2 * 8 * fan * fan), 1)
    parts = weight.split(most)
    return torch.cat([_greedy(rows, inverse) for rows in progress(parts, "removing weights")])


def _greedy(weight: Tensor, inverse: Tensor) -> Tensor:
    """Some rows at once: ``(rows, fan)``.

    Every row has an inverse of its own, over the columns that are left of it.  The vectors u of a block are taken off
    it together, at the block's end; until then they are taken off what is read of it.
    """
    rows, fan = weight.shape
    at = torch.arange(rows, device=weight.device)
    columns = torch.arange(fan, device=weight.device).expand(rows, fan)  # which ones are left
    w, inverse = weight.clone(), inverse.expand(rows, fan, fan)
    scores, last = weight.new_zeros(rows, fan), weight.new_zeros(rows)
    while columns.shape[1]:
        left = columns.shape[1]
        factors = weight.new_zeros(rows, min(BLOCK, left), left)  # the vectors u, one a step
        diagonal = inverse.diagonal(dim1=1, dim2=2).clone()
        gone = torch.zeros(rows, left, dtype=torch.bool, device=weight.device)
        for step in range(factors.shape[1]):
            error = (w.square() / (2 * diagonal)).masked_fill(gone, torch.inf)
            p = error.argmin(1)  # (rows,)
            last = torch.maximum(last, error[at, p])
            scores[at, columns[at, p]] = last
            done = factors[:, :step]
            row = inverse[at, p] - (done[at, :, p][:, None] @ done)[:, 0]  # (rows, left): H^-1_{p:} as it is now
            u = row / diagonal[at, p].sqrt()[:, None]
            w = w - (w[at, p] / diagonal[at, p].sqrt())[:, None] * u
            factors[:, step] = u
            gone[at, p] = True
            diagonal = (diagonal - u.square()).clamp(min=torch.finfo(w.dtype).tiny)
        stay = (~gone).nonzero()[:, 1].reshape(rows, -1)  # as many of every row
        columns, w = columns.gather(1, stay), w.gather(1, stay)
        kept = factors.gather(2, stay[:, None].expand(-1, factors.shape[1], -1))
        inverse = inverse[at[:, None, None], stay[:, :, None], stay[:, None]].baddbmm_(kept.mT, kept, alpha=-1)
    return scores
