"""Which units go: steps in the order in which they go, and the fewest of them that meet a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from prunus.core import Group, Groups

FEW = 1 << 16  # steps that are sorted; of more, only what lies between two pivots is
PIVOTS = 256


@dataclass(frozen=True, eq=False)
class Removal:
    """The steps in which units go, and the masks when the first of them have been asked to go.

    A step takes one unit of a group (one of every part), or, of groups that the model's code keeps in proportion
    (together a bundle), what all of them lose together.  It ranks as its units do on average; the lowest goes first,
    ties by order of the bundles.
    """

    groups: Groups
    bundles: tuple[tuple[Group, ...], ...]
    order: Mapping[str, Tensor]  # (units,) a group: its lowest go first
    values: Tensor  # (steps,) what every step ranks, bundle after bundle, in any order within one
    lengths: Tensor  # (bundles,) number of steps
    floors: Tensor  # (bundles,) least number of steps that stay
    multiples: Tensor  # (bundles,) the number of steps that stay is a multiple of this

    @classmethod
    def of(
        cls,
        groups: Groups,
        bundles: Sequence[Sequence[str]],
        ranking: Mapping[str, Tensor],
        floors: Mapping[str, int],
        round_to: int = 1,
        order: Mapping[str, Tensor] | None = None,
    ) -> Removal:
        """From one comparable number a unit; in groups of one part `order` says which unit each is of, else itself."""
        members = tuple(tuple(groups[id] for id in ids) for ids in bundles)
        values, least, multiples = [], [], []
        for bundle in members:
            ids = [group.id for group in bundle]
            quanta = groups.quanta(ids)
            steps = [_steps(ranking[g.id].detach().double().cpu(), g.parts, q) for g, q in zip(bundle, quanta)]
            values.append(torch.stack(steps).mean(0) if len(steps) > 1 else steps[0])
            least.append(max(math.ceil(floors[id] / quantum) for id, quantum in zip(ids, quanta)))
            multiples.append(_multiple(bundle, quanta, round_to))
        return cls(
            groups=groups,
            bundles=members,
            order=ranking if order is None else order,
            values=torch.cat(values) if values else torch.empty(0, dtype=torch.float64),
            lengths=torch.tensor([len(v) for v in values], dtype=torch.long),
            floors=torch.tensor(least, dtype=torch.long),
            multiples=torch.tensor(multiples, dtype=torch.long),
        )

    def fewest(self, fits: Callable[[dict[str, int]], bool]) -> Tensor | None:
        """How many steps of every bundle ``(bundles,)`` are asked to go so that the costs fit: the fewest in all.

        The masks for 0, 1, 2 ... steps are nested, so that bisection finds the first that fits: one step less does
        not.  None when not even all of them do.
        """

        def holds(asked: Tensor) -> bool:
            return fits(self.costs(asked))

        low, values, sizes = torch.zeros_like(self.lengths), self.values, self.lengths
        if not holds(self.lengths):
            return None
        if holds(low):
            return low
        while len(values) > FEW:
            low, inside, equal = _narrow(values, sizes, low, holds)
            sizes = _count(inside, sizes)
            if equal:
                return _first_of_equal(low, sizes, holds)
            values = values[inside]
        owner = torch.arange(len(sizes)).repeat_interleave(sizes)[values.argsort(stable=True)]

        def asked(k: int) -> Tensor:
            return low + torch.bincount(owner[:k], minlength=len(sizes))

        return asked(_first(len(values), lambda k: holds(asked(k))))

    def gone(self, asked: Tensor) -> Tensor:
        """How many steps of every bundle go when so many are asked to: down to its floor, in whole multiples."""
        left = torch.maximum(self.lengths - asked, self.floors)
        return self.lengths - torch.minimum(-(-left // self.multiples) * self.multiples, self.lengths)

    def costs(self, asked: Tensor) -> dict[str, int]:
        """What the network costs then; of single weights, counts tell it."""
        if not self.groups.weights:
            return self.groups.costs(self._placed(asked))
        counts = {group.id: group.units for group in self.groups}
        for group, gone in self._goes(asked):
            counts[group.id] -= gone * group.parts
        return self.groups.costs_of_counts(counts)

    def keep(self, asked: Tensor) -> Tensor:
        """The mask ``(units,)`` of what stays then."""
        if not self.groups.weights:
            return self._placed(asked)
        keep = torch.ones(self.groups.units, dtype=torch.bool)
        for group, gone in self._goes(asked):
            rows = keep[group.offset : group.offset + group.units].view(group.parts, group.count)
            rows &= ~lowest(self.order[group.id].detach().cpu().reshape(rows.shape), gone)
        return keep

    def _goes(self, asked: Tensor) -> list[tuple[Group, int]]:
        """Every group that may be cut, and how many units of each of its parts go."""
        out = []
        for bundle, gone in zip(self.bundles, self.gone(asked).tolist()):
            quanta = self.groups.quanta([group.id for group in bundle])
            out += [(g, min(gone * quantum, g.count)) for g, quantum in zip(bundle, quanta)]
        return out

    def _placed(self, asked: Tensor) -> Tensor:
        step, owner = self._steps_of_units
        return step >= torch.cat([self.gone(asked), torch.zeros(1, dtype=torch.long)])[owner]

    @cached_property
    def _steps_of_units(self) -> tuple[Tensor, Tensor]:
        """The step of its bundle that every unit goes with, and the bundle, ``(units,)``; the last for none."""
        step = torch.zeros(self.groups.units, dtype=torch.long)
        owner = torch.full((self.groups.units,), len(self.bundles))
        for number, bundle in enumerate(self.bundles):
            for group, quantum in zip(bundle, self.groups.quanta([g.id for g in bundle])):
                order = self.order[group.id].detach().cpu().reshape(group.parts, -1).argsort(dim=1, stable=True)
                places = torch.empty_like(order).scatter_(1, order, torch.arange(group.count).expand_as(order))
                step[group.offset : group.offset + group.units] = (places // quantum).flatten()
                owner[group.offset : group.offset + group.units] = number
        return step, owner


def lowest(values: Tensor, count: int) -> Tensor:
    """The `count` lowest of every row ``(rows, n)``, ties by order: boolean, without sorting.

    >>> lowest(torch.tensor([[3., 1., 1., 2.]]), 1)
    tensor([[False,  True, False, False]])
    """
    if not 0 < count < values.shape[1]:
        return torch.full(values.shape, count > 0)
    highest = values.kthvalue(count, dim=1, keepdim=True).values
    found = values <= highest
    more = found.sum(1) - count  # values equal to the highest, of which the last stay
    if bool(more.any()):
        equal = values == highest
        behind = equal.sum(1, keepdim=True) - equal.cumsum(1)  # equal ones after each
        found &= ~equal | (behind >= more[:, None])
    return found


def _steps(ranking: Tensor, parts: int, quantum: int) -> Tensor:
    """What every step of a group ranks: the mean of what goes with it, `quantum` of every part at a time."""
    if parts == quantum == 1:
        return ranking
    rows = ranking.reshape(parts, -1).sort(dim=1).values
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % quantum), value=math.nan)
    return padded.reshape(parts, -1, quantum).nanmean((0, 2))


def _multiple(bundle: Sequence[Group], quanta: Sequence[int], round_to: int) -> int:
    """How many steps go together so that the kept counts of wide groups are multiples of `round_to`."""
    wide = [q for group, q in zip(bundle, quanta) if group.count >= round_to]
    return math.lcm(1, *(round_to // math.gcd(q, round_to) for q in wide))


def _narrow(values: Tensor, sizes: Tensor, low: Tensor, holds: Callable[[Tensor], bool]) -> tuple[Tensor, Tensor, bool]:
    """Less to search, by the pivots that the end of it lies between.

    With `low` of every bundle it does not hold, with all `values` on top it does.  Returns a higher `low`, a mask of
    the values to go on with, and whether they are all equal.
    """
    pivots = values[:: len(values) // PIVOTS].unique()
    at = _first(len(pivots), lambda i: holds(low + _count(values <= pivots[i], sizes)))
    inside = values > pivots[at - 1] if at else torch.ones(len(values), dtype=torch.bool)
    low = low + _count(~inside, sizes)
    if at == len(pivots):
        return low, inside, False
    equal = inside & (values == pivots[at])
    inside &= values < pivots[at]
    below = low + _count(inside, sizes)
    return (low, inside, False) if holds(below) else (below, equal, True)


def _first_of_equal(low: Tensor, sizes: Tensor, holds: Callable[[Tensor], bool]) -> Tensor:
    """The fewest of steps that all rank the same, `sizes` of every bundle: they go bundle after bundle."""
    starts = sizes.cumsum(0) - sizes

    def asked(k: int) -> Tensor:
        return low + torch.minimum((k - starts).clamp(min=0), sizes)

    return asked(_first(int(sizes.sum()), lambda k: holds(asked(k))))


def _count(marked: Tensor, sizes: Tensor) -> Tensor:
    """How many are marked of each of consecutive runs of the given sizes."""
    return torch.stack([run.count_nonzero() for run in marked.split(sizes.tolist())])


def _first(count: int, holds: Callable[[int], bool]) -> int:
    """The first of ``range(count)`` for which it holds, `count` if for none; where it holds, it does for all above."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
