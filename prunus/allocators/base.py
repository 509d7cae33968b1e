"""What an allocator is, and the one mechanism that removes units until a budget is met."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from prunus.allocators.removal import Removal
from prunus.core import (
    Budget,
    BudgetError,
    Group,
    Groups,
    InputError,
    Plan,
    Registry,
    UnknownNameError,
    did_you_mean,
    under,
)
from prunus.core.callbacks import own
from prunus.core.checks import check_arguments, shown

Floor = int | float | Mapping[str, int | float] | None


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

    @property
    def bundles(self) -> tuple[tuple[str, ...], ...]:
        """Scored groups, each by itself or with those it stays in proportion to; without scores for all, they stay."""
        together = {id: ids for ids in self.groups.proportions for id in ids}
        found = dict.fromkeys(together.get(g.id, (g.id,)) for g in self.groups)
        return tuple(ids for ids in found if all(id in self.scores for id in ids))

    def allows(self, costs: Mapping[str, int]) -> bool:
        """Whether the costs are within every limit."""
        return all(costs[kind] <= limit for kind, limit in self.limits.items())

    def remove_lowest(self, ranking: Mapping[str, Tensor], order: Mapping[str, Tensor] | None = None) -> Tensor:
        """The keep mask that removes the fewest lowest-ranked units so that the budget is met, exactly.

        `ranking` is one number a unit, comparable over all groups; ties go by order of the groups, then of the units.
        With `order` (say, the scores), the units of a group go by that, and the numbers of a group of one part may
        stand in any order: what the first, the second ... to go of it ranks.
        Raises `BudgetError`, with the least reachable cost, when none does.
        """
        removal = Removal.of(self.groups, self.bundles, ranking, self.floors, self.round_to, order)
        asked = removal.fewest(self.allows)
        if asked is None:
            least = removal.costs(removal.lengths)
            raise BudgetError(self._unreachable(least), least)
        return removal.keep(asked)

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


allocators: Registry[Callable[[Problem], Tensor]] = Registry("allocator")


def allocate(
    groups: Groups,
    scores: Mapping[str, Tensor],
    budget: Budget,
    *,
    allocator: str | Callable[[Problem], Tensor] = "global",
    round_to: int = 1,
    floor: Floor = None,
) -> Plan:
    """Choose the units that stay so that the shrunk network costs at most `budget`, and is not needlessly small.

    Args:
        scores: ``{group id: (units,)}`` as `prunus.criteria.score` gives it; groups that are absent stay whole.
        allocator: a name, or the registered function itself.
        round_to: kept counts become multiples of it, rounded up, in groups that are at least that wide.
        floor: least units of any group that stay, an int, or a fraction of the group; None: 1 %, at least one
            (of weights, one).
            No group is ever emptied.  A mapping gives every kind of group its own, by name or glob, the last that
            matches: ``{"*/heads": 1.0, "*/head_dim": 0.5}`` keeps whole heads and half of their dimensions.

    Raises: `BudgetError` saying the least reachable cost; `UnknownNameError`; `InputError` for scores of another
    network.
    """
    check_arguments(locals())
    return groups.plan(kept(groups, scores, budget, allocator=allocator, round_to=round_to, floor=floor))


def kept(
    groups: Groups,
    scores: Mapping[str, Tensor],
    budget: Budget,
    *,
    allocator: str | Callable[[Problem], Tensor] = "global",
    round_to: int = 1,
    floor: Floor = None,
) -> Tensor:
    """The keep mask ``(units,)`` of the plan that `allocate` makes of the same arguments.

    Args: scores, budget, allocator, round_to, floor: as there.

    Raises: what `allocate` does: `UnknownNameError` also for a pattern of `floor` that matches no group, `InputError`
    also for an allocator that does not give a mask.
    """
    check_arguments(locals())
    entry = allocators.find(allocator)
    _check(groups, scores)
    floors = {group.id: _floor(group, _floor_of(group, floor), groups.least) for group in groups if group.id in scores}
    if isinstance(floor, Mapping):
        for pattern in floor:
            if not any(under(group.id, pattern) for group in groups):
                hint = did_you_mean(pattern, [group.id for group in groups])
                raise UnknownNameError(f"floor= names '{pattern}', which matches no group.{hint} See: prunus groups.")
    problem = Problem(groups, scores, budget.limits(groups.costs()), floors, round_to)
    keep = own(entry.call, "allocator=")(problem)
    if not isinstance(keep, Tensor):
        raise InputError(f"allocator '{entry.name}' gave {shown(keep)}; expected a boolean tensor ({groups.units},).")
    return keep


def _floor_of(group: Group, floor: Floor) -> int | float | None:
    """What `floor` says of one group."""
    if not isinstance(floor, Mapping):
        return floor
    return next((value for pattern, value in reversed(list(floor.items())) if under(group.id, pattern)), None)


def _floor(group: Group, floor: int | float | None, least: float) -> int:
    """Least units of `group` that stay."""
    share = least if floor is None else floor
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not share >= 0:
        raise InputError(f"floor={floor!r}: expected a number of units (int) or a fraction of a group (float).")
    if isinstance(share, float) and share > 1:
        raise InputError(f"floor={floor}: a fraction of a group must lie in [0, 1]; a number of units is an int.")
    kept = math.ceil(share * group.count) if isinstance(share, float) else share
    return min(max(kept, group.floor, 1), group.count)


def _check(groups: Groups, scores: Mapping[str, Tensor]) -> None:
    for id, values in scores.items():
        group = groups[id]
        if tuple(values.shape) != (group.units,):
            raise InputError(
                f"scores of group '{id}' have shape {tuple(values.shape)}; the group has {group.units} units. They are "
                "of another network: trace and score again after a cut."
            )
        if not bool(values.isfinite().all()):
            raise InputError(f"scores of group '{id}' hold a number that is not finite; they cannot be ranked.")
