"""Which indices of a dimension belong to which unit, said shortly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

Stretch = tuple[int, int, int]  # the first index, how many, and the step from one to the next


def compact(index: Tensor) -> dict[str, Any]:
    """A ``(units, m)`` matrix of indices as data: those of unit 0 and the step to the next unit, else unit by unit.

    Args:
        index: the `index` of a slice.

    Returns: ``{"step": s, "at": stretches}`` when unit ``u`` has the indices of unit 0 plus ``u * s``, else
    ``{"units": [stretches, ...]}``; a stretch is ``[first, count, step]``.

    >>> import torch
    >>> compact(torch.arange(12).reshape(3, 4)), compact(torch.tensor([[0], [2], [1]]))
    ({'step': 4, 'at': [(0, 4, 1)]}, {'units': [[(0, 1, 1)], [(2, 1, 1)], [(1, 1, 1)]]})
    """
    rows = index.tolist()
    step = rows[1][0] - rows[0][0] if len(rows) > 1 else 1
    if all(v == first + u * step for u, row in enumerate(rows) for v, first in zip(row, rows[0])):
        return {"step": step, "at": stretches(rows[0])}
    return {"units": [stretches(row) for row in rows]}


def stretches(row: Sequence[int]) -> list[Stretch]:
    """Ascending indices as evenly spaced stretches.

    >>> stretches([0, 1, 2, 3, 8, 9, 10, 11]), stretches([5]), stretches([0, 64, 128])
    ([(0, 4, 1), (8, 4, 1)], [(5, 1, 1)], [(0, 3, 64)])
    """
    out: list[Stretch] = []
    at = 0
    while at < len(row):
        step = row[at + 1] - row[at] if at + 1 < len(row) else 1
        end = at + 1
        while end < len(row) and row[end] - row[end - 1] == step:
            end += 1
        out.append((row[at], end - at, step))
        at = end
    return out
