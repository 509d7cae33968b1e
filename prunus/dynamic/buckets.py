"""Inputs with equal or near masks, to be computed together."""

from __future__ import annotations

import torch
from torch import Tensor

EACH = 0.5  # what a bucket costs on top of its inputs, in inputs: gathering weights and rows


def buckets(on: Tensor, before: Tensor | None, break_even: float) -> list[Tensor] | None:
    """Rows of inputs to compute together, or None when the whole layer costs less.

    A bucket is computed with every channel that any of its inputs needs.  Buckets are the inputs nearest (in channels
    that differ) to seeds that lie far from each other; their number, a power of two, is what costs least.

    Args:
        on: ``(N, C_out)``, channels that are on.
        before: ``(N, C_in)``, input channels that are on; None: all.
        break_even: the share of multiply-adds above which the whole layer is faster.

    >>> on = torch.tensor([[1, 1, 0, 0]] * 8 + [[0, 0, 1, 1]] * 8).bool()
    >>> [rows.tolist() for rows in buckets(on, None, 1.0)]
    [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13, 14, 15]]
    >>> buckets(torch.ones(4, 3).bool(), None, 0.9) is None
    True
    """
    n = len(on)
    both = (on if before is None else torch.cat([on, before], 1)).float()
    far = torch.cdist(both, both, p=1)  # (N, N), channels that differ
    seeds = [0]
    while len(seeds) < n:
        nearest = far[:, seeds].min(1).values
        if nearest.max() == 0:
            break
        seeds.append(int(nearest.argmax()))
    best: tuple[float, list[Tensor]] = (n * break_even, [])
    count = 1
    while True:
        of = far[:, seeds[:count]].argmin(1)
        rows = [torch.nonzero(of == b).flatten() for b in range(min(count, len(seeds)))]
        cost = sum(len(r) * _share(on, r) * _share(before, r) + EACH * (count > 1) for r in rows)
        if cost <= best[0]:
            best = (cost, rows)
        if count >= len(seeds):
            break
        count *= 2
    return best[1] or None


def _share(on: Tensor | None, rows: Tensor) -> float:
    """The share of channels that any of the rows needs."""
    return 1.0 if on is None else float(on[rows].any(0).float().mean())
