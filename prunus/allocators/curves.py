"""How much a network minds: its accuracy as each group alone loses more and more units."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.core import Group, Groups, InputError, Plan
from prunus.core.callbacks import own
from prunus.core.checks import a_number, a_text, check_arguments, is_number, sequence, shown
from prunus.core.errors import UnknownNameError, did_you_mean
from prunus.core.running import undisturbed
from prunus.core.undo import all_or_nothing
from prunus.surgery.hold import gaps, silence_

FRACTIONS = tuple(n / 10 for n in range(1, 10))
TIE = 1e-9  # of the accuracy, by the fraction: groups that do not mind lose the same fraction


@dataclass(frozen=True)
class Sensitivity:
    """What `sensitivity` measured.

    Attributes:
        fractions: of a group's units that are silenced, rising.
        whole: what `evaluate` says of the whole network.
        values: per group, what it says at every fraction.
    """

    fractions: tuple[float, ...]
    whole: float
    values: Mapping[str, tuple[float, ...]]

    def drops(self, id: str) -> tuple[float, ...]:
        """What the group `id` loses at every fraction, at least what it loses at smaller ones.

        Raises: `UnknownNameError` for a group without a curve.

        >>> Sensitivity((.25, .5, .75), .9, {"conv": (.9, .8, .85)}).drops("conv")[1:]
        (0.1, 0.1)
        """
        check_arguments(locals(), id=a_text)
        if id not in self.values:
            raise UnknownNameError(f"there is no curve of a group '{id}'.{did_you_mean(str(id), self.values)}")
        lost = [round(self.whole - value, 12) for value in self.values[id]]
        return tuple(max(0.0, *lost[: n + 1]) for n in range(len(lost)))

    def widest(self, drop: float) -> dict[str, float]:
        """Per group, the largest fraction up to which it loses at most `drop`; 0 where none is.

        >>> Sensitivity((.25, .5, .75), .9, {"conv": (.9, .8, .5)}).widest(.1)
        {'conv': 0.5}
        """
        check_arguments(locals(), drop=a_number)
        within = {id: [f for f, d in zip(self.fractions, self.drops(id)) if d <= drop] for id in self.values}
        return {id: max(fractions, default=0.0) for id, fractions in within.items()}

    def plan(self, groups: Groups, scores: Mapping[str, Tensor], drop: float) -> Plan:
        """The plan that removes from every group the lowest scores up to the fraction at which alone it loses `drop`.

        Raises: `InputError` where the model's code keeps groups in proportion, and they mind differently.
        """
        check_arguments(locals(), drop=a_number)
        keep = torch.ones(groups.units, dtype=torch.bool)
        for id, fraction in self.widest(drop).items():
            group = groups[id]
            keep[group.offset : group.offset + group.units] = stays(group, scores[id], fraction)
        return groups.plan(keep)

    def ranking(self, groups: Groups, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per unit, what its group has lost once the unit goes: `allocate` it, and all groups lose the same.

        Units go in the order of `scores`, ``{group id: (units,)}``; groups without a curve or scores are absent.
        The curve between the fractions is a straight line; behind the last one, it goes to the worst of all groups.
        """
        check_arguments(locals())
        worst = max((self.drops(id)[-1] for id in self.values), default=0.0)
        out = {}
        for id in (id for id in self.values if id in scores):
            gone = places(groups[id], scores[id]) / groups[id].count  # (units,) the fraction with which each goes
            at = torch.tensor([0.0, *self.fractions, 1.0], dtype=torch.float64)
            lost = torch.tensor([0.0, *self.drops(id), worst], dtype=torch.float64)
            right = torch.searchsorted(at, gone).clamp(min=1)
            share = (gone - at[right - 1]) / (at[right] - at[right - 1])
            out[id] = lost[right - 1] + share * (lost[right] - lost[right - 1]) + TIE * gone
        return out


def sensitivity(
    model: nn.Module,
    groups: Groups,
    scores: Mapping[str, Tensor],
    evaluate: Callable[[nn.Module], float],
    fractions: Sequence[float] = FRACTIONS,
) -> Sensitivity:
    r"""Evaluate the network with the lowest-scoring fraction of each group alone silenced, without training.

    Silenced units are zero in every layer that makes and that reads them, so that the numbers are those of the cut
    network.  :math:`\lfloor f n \rfloor` of :math:`n` units go (of every part of a group).  `model` is in evaluation
    mode meanwhile, and is left as it was whatever happens.

    Args:
        groups, scores: what `prunus.trace` and `prunus.score` returned; groups without scores are left out.
        evaluate: network -> number, higher is better, on data that no later result is quoted on.
        fractions: each between 0 and 1, without the ends.

    Raises: `InputError` for other fractions, and when `evaluate` gives no finite number.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.2 (figure 2b).

    >>> import prunus
    >>> net = nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 1))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[0.], [0.], [1.], [2.]])), net[0].bias.data.zero_()
    >>> _ = net[1].weight.data.fill_(1.), net[1].bias.data.zero_()
    >>> groups = prunus.trace(net, torch.ones(1, 1))
    >>> curve = prunus.sensitivity(net, groups, prunus.score(groups, "l1"), lambda m: m(torch.ones(1, 1)).item(),
    ...     fractions=(.25, .5, .75))
    >>> curve.whole, curve.values
    (3.0, {'0': (3.0, 3.0, 2.0)})
    """
    check_arguments(
        locals(),
        fractions=sequence("numbers between 0 and 1, without the ends, e.g. (0.25, 0.5)", is_number, empty=False),
    )
    steps = tuple(sorted(float(f) for f in fractions))
    if not steps or not all(0 < f < 1 for f in steps):
        raise InputError(
            f"fractions={list(fractions)!r}: expected numbers between 0 and 1, without the ends, e.g. 0.5."
        )
    groups = groups.bind(model)
    measure = own(evaluate, "evaluate=")
    with all_or_nothing(model), undisturbed(model):
        whole = _finite(measure(model), "the whole network")
        values: dict[str, tuple[float, ...]] = {}
        for group in (g for g in groups if g.id in scores):
            found = []
            for fraction in steps:
                keep = torch.ones(groups.units, dtype=torch.bool)
                keep[group.offset : group.offset + group.units] = stays(group, scores[group.id], fraction)
                with silenced(groups, keep):
                    found.append(_finite(measure(model), f"{fraction:.0%} of group '{group.id}' silenced"))
            values[group.id] = tuple(found)
    return Sensitivity(steps, whole, values)


@contextmanager
def silenced(groups: Groups, keep: Tensor) -> Iterator[None]:
    """The units that `keep` does not mark True are zero meanwhile."""
    holes = gaps(groups, keep)
    before = {id(hole.parameter): (hole.parameter, hole.parameter.detach().clone()) for hole in holes}
    try:
        silence_(holes)
        yield
    finally:
        with torch.no_grad():
            for parameter, values in before.values():
                parameter.copy_(values)


def stays(group: Group, scores: Tensor, fraction: float) -> Tensor:
    """Which units stay ``(units,)`` when the lowest `fraction` of every part goes; rounded down."""
    return places(group, scores) > math.floor(fraction * group.count + 1e-9)


def places(group: Group, scores: Tensor) -> Tensor:
    """``(units,)`` the place of every unit within its part, from 1, lowest scores first; ties by order."""
    rows = scores.reshape(group.parts, -1)
    out = torch.empty(rows.shape, dtype=torch.float64)
    return out.scatter_(
        1, rows.argsort(dim=1, stable=True), torch.arange(1.0, rows.shape[1] + 1).double().expand_as(rows)
    ).flatten()


def _finite(given: float, what: str) -> float:
    try:
        value = float(given)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"evaluate= gave {shown(given)} for {what}; expected a number, higher = better.") from None
    if not math.isfinite(value):
        raise InputError(f"evaluate= gave {value} for {what}; expected a finite number, higher = better.")
    return value
