"""What an allocator is, and the one mechanism that removes units until a budget is met."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.core import Budget, BudgetError, Group, Groups, InputError, Plan, Registry

LEAST = 0.01  # of a group's units stay by default


@dataclass(frozen=True, eq=False)
class Problem:
    """What an allocator is given: scored groups, what may remain, and how little of a group may stay.

    Attributes:
        groups: all groups of the network.
        scores: ``(units,)`` a group, higher = keep; groups without scores stay whole.
        limits: absolute costs that must not be exceeded, as ``{"macs": 1000}``.
        floors: least units to keep, per scored group.
        round_to: kept counts are rounded up to a multiple of it in groups that are at least that wide.
    """

    groups: Groups
    scores: Mapping[str, Tensor]
    limits: Mapping[str, int]
    floors: Mapping[str, int]
    round_to: int = 1

    @property
    def scored(self) -> tuple[Group, ...]:
        """The groups that may be cut, in order."""
        return tuple(group for group in self.groups if group.id in self.scores)

    def fits(self, keep: Tensor) -> bool:
        """Whether the network with the units of `keep` left is within every limit."""
        costs = self.groups.costs(keep)
        return all(costs[kind] <= limit for kind, limit in self.limits.items())

    def remove_lowest(self, ranking: Mapping[str, Tensor]) -> Tensor:
        """The keep mask that removes the fewest lowest-ranked units so that the budget is met, exactly.

        `ranking` is one number a unit, comparable over all groups; ties go by order of the groups, then of the units.
        The masks for 0, 1, 2 ... units are nested, so that bisection finds the first that fits: one unit less exceeds
        the budget.  Raises `BudgetError`, with the least reachable cost, when none does.
        """
        removal = Removal.of(self, ranking)
        low, high = 0, removal.steps
        if not self.fits(removal.keep(high)):
            least = self.groups.costs(removal.keep(high))
            raise BudgetError(self._unreachable(least), least)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.fits(removal.keep(middle)) else (middle + 1, high)
        return removal.keep(low)

    def _unreachable(self, least: Mapping[str, int]) -> str:
        original = self.groups.costs()
        rows = [
            f"{kind} may be {limit:,} at most, but the least reachable is {least[kind]:,} "
            f"({least[kind] / max(original[kind], 1):.1%} of {original[kind]:,})"
            for kind, limit in self.limits.items()
            if least[kind] > limit
        ]
        left = len(self.groups) - len(self.scored)
        whole = f" {left} of {len(self.groups)} groups have no score and stay whole." if left else ""
        return (
            f"the budget cannot be met: {'; '.join(rows)}.{whole} Ask for no less than that, or lower floor= "
            f"(keeps {sum(self.floors.values())} units now) or round_to= ({self.round_to} now), or freeze less."
        )


@dataclass(frozen=True, eq=False)
class Removal:
    """Units in the order in which they go; `keep(k)` is the mask when the first `k` have been asked to go."""

    order: Tensor  # (scored units,) positions among the scored units, lowest rank first
    owner: Tensor  # (scored units,) which scored group each belongs to
    place: Tensor  # (scored units,) 0 for the unit that its group loses first
    flat: Tensor  # (scored units,) number of each in the keep mask
    sizes: Tensor  # (scored groups,)
    floors: Tensor  # (scored groups,)
    round_to: int
    units: int

    @classmethod
    def of(cls, problem: Problem, ranking: Mapping[str, Tensor]) -> Removal:
        """From one comparable number a unit."""
        scored = problem.scored
        sizes = torch.tensor([g.units for g in scored], dtype=torch.long)
        values = [ranking[g.id].double() for g in scored]
        owner = torch.arange(len(scored)).repeat_interleave(sizes)
        place = [torch.empty(len(v), dtype=torch.long) for v in values]
        for out, v in zip(place, values, strict=True):
            out[v.argsort(stable=True)] = torch.arange(len(v))
        flat = [torch.arange(g.offset, g.offset + g.units) for g in scored]
        return cls(
            order=_cat(values, torch.float64).argsort(stable=True),
            owner=owner,
            place=_cat(place),
            flat=_cat(flat),
            sizes=sizes,
            floors=torch.tensor([problem.floors[g.id] for g in scored], dtype=torch.long),
            round_to=problem.round_to,
            units=problem.groups.units,
        )

    @property
    def steps(self) -> int:
        """How many units can be asked to go."""
        return len(self.order)

    def keep(self, asked: int) -> Tensor:
        """The keep mask ``(units,)``: a group gives up what was asked of it, down to its floor, in whole multiples."""
        gone = torch.bincount(self.owner[self.order[:asked]], minlength=len(self.sizes))
        left = torch.maximum(self.sizes - gone, self.floors)
        rounded = torch.minimum((left + self.round_to - 1) // self.round_to * self.round_to, self.sizes)
        left = torch.where(self.sizes >= self.round_to, rounded, left)
        keep = torch.ones(self.units, dtype=torch.bool)
        keep[self.flat] = self.place >= (self.sizes - left)[self.owner]
        return keep


allocators: Registry[Callable[[Problem], Tensor]] = Registry("allocator")


def allocate(
    groups: Groups,
    scores: Mapping[str, Tensor],
    budget: Budget,
    *,
    allocator: str | Callable[[Problem], Tensor] = "global",
    round_to: int = 1,
    floor: int | float | None = None,
) -> Plan:
    """Choose the units that stay so that the shrunk network costs at most `budget`, and is not needlessly small.

    Args:
        scores: ``{group id: (units,)}`` as `prunus.criteria.score` gives it; groups that are absent stay whole.
        allocator: a name, or the registered function itself.
        round_to: kept counts become multiples of it, rounded up, in groups that are at least that wide.
        floor: least units of any group that stay, an int, or a fraction of the group; None: 1 %, at least one.
            No group is ever emptied.

    Raises: `BudgetError` saying the least reachable cost; `UnknownNameError`; `InputError` for scores of another
    network.
    """
    entry = allocators.find(allocator)
    _check(groups, scores, round_to)
    floors = {group.id: _floor(group, floor) for group in groups if group.id in scores}
    problem = Problem(groups, scores, budget.limits(groups.costs()), floors, round_to)
    return groups.plan(entry.call(problem))


def _floor(group: Group, floor: int | float | None) -> int:
    """Least units of `group` that stay."""
    share = LEAST if floor is None else floor
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not share >= 0:
        raise InputError(f"floor={floor!r}: expected a number of units (int) or a fraction of a group (float).")
    if isinstance(share, float) and share > 1:
        raise InputError(f"floor={floor}: a fraction of a group must lie in [0, 1]; a number of units is an int.")
    least = math.ceil(share * group.units) if isinstance(share, float) else share
    return min(max(least, group.floor, 1), group.units)


def _check(groups: Groups, scores: Mapping[str, Tensor], round_to: int) -> None:
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise InputError(f"round_to={round_to!r}: expected a positive int, e.g. 16 (the vector width of most CPUs).")
    for id, values in scores.items():
        group = groups[id]
        if tuple(values.shape) != (group.units,):
            raise InputError(
                f"scores of group '{id}' have shape {tuple(values.shape)}; the group has {group.units} units. They are "
                "of another network: trace and score again after a cut."
            )
        if not bool(values.isfinite().all()):
            raise InputError(f"scores of group '{id}' hold a number that is not finite; they cannot be ranked.")


def _cat(parts: list[Tensor], dtype: torch.dtype = torch.long) -> Tensor:
    return torch.cat(parts) if parts else torch.empty(0, dtype=dtype)
