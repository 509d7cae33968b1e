"""What an allocator is, and the one mechanism that removes units until a budget is met."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

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

    def fits(self, keep: Tensor) -> bool:
        """Whether the network with the units of `keep` left is within every limit."""
        costs = self.groups.costs(keep)
        return all(costs[kind] <= limit for kind, limit in self.limits.items())

    def remove_lowest(self, ranking: Mapping[str, Tensor]) -> Tensor:
        """The keep mask that removes the fewest lowest-ranked units so that the budget is met, exactly.

        `ranking` is one number a unit, comparable over all groups; ties go by order of the groups, then of the units.
        The masks for 0, 1, 2 ... steps (see `Removal`) are nested, so that bisection finds the first that fits: one
        step less exceeds the budget.  Raises `BudgetError`, with the least reachable cost, when none does.
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
    """Steps in the order in which they go; `keep(k)` is the mask when the first `k` have been asked to go.

    A step takes one unit of a group (one of every part), or, of groups that the model's code keeps in proportion, what
    all of them lose together.  It ranks as its units do on average.
    """

    order: Tensor  # (steps,) lowest rank first
    owner: Tensor  # (steps,) the bundle that each step belongs to: a group, or groups in proportion
    flat: Tensor  # (units,) number of each scored unit in the keep mask
    bundle: Tensor  # (units,) the bundle of each unit
    step: Tensor  # (units,) the step of its bundle that each unit goes with
    lengths: Tensor  # (bundles,) number of steps
    floors: Tensor  # (bundles,) least number of steps that stay
    multiples: Tensor  # (bundles,) the number of steps that stay is a multiple of this
    units: int

    @classmethod
    def of(cls, problem: Problem, ranking: Mapping[str, Tensor]) -> Removal:
        """From one comparable number a unit."""
        order, owner, flat, bundle, step = [], [], [], [], []
        lengths, floors, multiples = [], [], []
        for b, ids in enumerate(problem.bundles):
            quanta = problem.groups.quanta(ids)
            length = -(-problem.groups[ids[0]].count // quanta[0])
            steps_of = [_steps(ranking[id], problem.groups[id].parts, quantum) for id, quantum in zip(ids, quanta)]
            means = torch.stack(
                [
                    torch.zeros(length, dtype=torch.float64).scatter_reduce(
                        0, steps, ranking[id].double(), "mean", include_self=False
                    )
                    for id, steps in zip(ids, steps_of)
                ]
            )
            order.append(means.mean(0))
            owner.append(torch.full((length,), b))
            for id, steps in zip(ids, steps_of):
                group = problem.groups[id]
                flat.append(torch.arange(group.offset, group.offset + group.units))
                bundle.append(torch.full((group.units,), b))
                step.append(steps)
            lengths.append(length)
            floors.append(max(math.ceil(problem.floors[id] / quantum) for id, quantum in zip(ids, quanta)))
            multiples.append(_multiple(problem, ids, quanta))
        return cls(
            order=_cat(order, torch.float64).argsort(stable=True),
            owner=_cat(owner),
            flat=_cat(flat),
            bundle=_cat(bundle),
            step=_cat(step),
            lengths=torch.tensor(lengths, dtype=torch.long),
            floors=torch.tensor(floors, dtype=torch.long),
            multiples=torch.tensor(multiples, dtype=torch.long),
            units=problem.groups.units,
        )

    @property
    def steps(self) -> int:
        """How many steps can be asked to go."""
        return len(self.order)

    def keep(self, asked: int) -> Tensor:
        """The keep mask ``(units,)``: a bundle gives up what was asked of it, down to its floor, in whole multiples."""
        gone = torch.bincount(self.owner[self.order[:asked]], minlength=len(self.lengths))
        left = torch.maximum(self.lengths - gone, self.floors)
        left = torch.minimum((left + self.multiples - 1) // self.multiples * self.multiples, self.lengths)
        keep = torch.ones(self.units, dtype=torch.bool)
        keep[self.flat] = self.step >= (self.lengths - left)[self.bundle]
        return keep


def _steps(ranking: Tensor, parts: int, quantum: int) -> Tensor:
    """``(units,)``: the step that each unit goes with, lowest ranks of every part first, `quantum` at a time."""
    rows = ranking.reshape(parts, -1)
    place = torch.empty(rows.shape, dtype=torch.long)
    place.scatter_(1, rows.argsort(dim=1, stable=True), torch.arange(rows.shape[1]).expand_as(rows))
    return (place // quantum).flatten()


def _multiple(problem: Problem, ids: tuple[str, ...], quanta: tuple[int, ...]) -> int:
    """How many steps go together so that the kept counts of wide groups are multiples of `round_to`."""
    wide = [q for id, q in zip(ids, quanta) if problem.groups[id].count >= problem.round_to]
    return math.lcm(1, *(problem.round_to // math.gcd(q, problem.round_to) for q in wide))


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
    entry = allocators.find(allocator)
    _check(groups, scores, round_to)
    floors = {group.id: _floor(group, _floor_of(group, floor), groups.least) for group in groups if group.id in scores}
    if isinstance(floor, Mapping):
        for pattern in floor:
            if not any(under(group.id, pattern) for group in groups):
                hint = did_you_mean(pattern, [group.id for group in groups])
                raise UnknownNameError(f"floor= names '{pattern}', which matches no group.{hint} See: prunus groups.")
    problem = Problem(groups, scores, budget.limits(groups.costs()), floors, round_to)
    return groups.plan(entry.call(problem))


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
