"""Masks that move: weights are dropped, and as many grow elsewhere.  The parts that methods are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from prunus.masks.moment import Moment, Update

Drop = Callable[[Moment], Mapping[str, Tensor]]  # which of the kept units go, (units,) by group
Grow = Callable[[Moment, str], Tensor]  # scores of the units that may come, (units,), highest first
Share = Callable[[Moment, Mapping[str, Tensor], Mapping[str, Tensor]], Mapping[str, int]]  # how many come, by group


def exchange(drop: Drop, grow: Grow, share: Share | None = None, *, back: bool = True) -> Update:
    r"""Drop, then grow as many: $m \leftarrow (m \setminus D) \cup G$ with $\sum |G| = \sum |D|$.

    Args:
        share: how many every group gets; None: what it lost.
        back: whether a unit that was just dropped may come back (with the weight it had).
    """

    def update(m: Moment) -> dict[str, Tensor]:
        gone = drop(m)
        stay = {id: m.keep[id] & ~gone[id] for id in m.keep}
        room = {id: ~(stay[id] if back else m.keep[id]) for id in stay}
        counts = {id: int(gone[id].sum()) for id in gone} if share is None else share(m, gone, room)
        return {id: stay[id] | best(grow(m, id), min(counts[id], int(room[id].sum())), room[id]) for id in stay}

    return update


def best(scores: Tensor, count: int, among: Tensor) -> Tensor:
    """The `count` highest of the scores ``(units,)`` `among` those that are True; ties by order.

    >>> best(torch.tensor([3.0, 1.0, 2.0]), 1, torch.tensor([False, True, True]))
    tensor([False, False,  True])
    """
    ranked = scores.double().masked_fill(~among, -torch.inf).argsort(descending=True, stable=True)
    out = torch.zeros(len(scores), dtype=torch.bool)
    out[ranked[:count]] = True
    return out


def smallest(fraction: Callable[[int], float], score: Grow = Moment.magnitude) -> Drop:
    r"""Drop of every group the $\lfloor \alpha_t \, n_l \rfloor$ smallest of the $n_l$ that are kept."""

    def drop(m: Moment) -> dict[str, Tensor]:
        share = fraction(m.step)
        return {id: best(-score(m, id), int(share * int(kept.sum())), kept) for id, kept in m.keep.items()}

    return drop


def in_proportion(weight: Callable[[Moment, str, Tensor], float]) -> Share:
    """Share what was dropped in proportion to a weight of every group, given which of its units stay.

    A group of which none stays gets one first, for in proportion to what is left of it, it would never come back.  What
    a group has no room for goes to the others.
    """

    def share(m: Moment, gone: Mapping[str, Tensor], room: Mapping[str, Tensor]) -> dict[str, int]:
        stay = {id: kept & ~gone[id] for id, kept in m.keep.items()}
        total = sum(int(g.sum()) for g in gone.values())
        wanted = torch.tensor([weight(m, id, left) for id, left in stay.items()], dtype=torch.float64)
        free = torch.tensor([int(room[id].sum()) for id in stay])
        empty = torch.tensor([not bool(left.any()) for left in stay.values()]) & (free > 0)
        first = (empty & (empty.cumsum(0) <= total)).long()
        return dict(zip(stay, (first + spread(total - int(first.sum()), wanted, free - first)).tolist()))

    return share


def spread(total: int, weights: Tensor, room: Tensor) -> Tensor:
    """Whole numbers in proportion to the weights ``(n,)``, none above its `room`, that make up `total` if they can.

    What is left over goes to the largest remainders.

    >>> spread(10, torch.tensor([1.0, 1.0, 2.0]), torch.tensor([9, 9, 2]))
    tensor([4, 4, 2])
    >>> spread(6, torch.tensor([0.87, 0.13]), torch.tensor([9, 9]))  # 5.2 and 0.8
    tensor([5, 1])
    """
    left = min(total, int(room.sum()))
    out = torch.zeros_like(room)
    while left:
        free = room - out
        pull = weights * (free > 0) if bool((weights * (free > 0)).any()) else (free > 0).double()
        exact = left * pull / pull.sum()
        more = exact.floor().long()
        if not bool((more > free).any()):
            order = (exact - more).masked_fill(free == 0, -1).argsort(descending=True, stable=True)
            more[order[: left - int(more.sum())]] += 1
        more = torch.minimum(more, free)
        out, left = out + more, left - int(more.sum())
    return out
