"""How many units of groups may stay: as many of every part, in proportion, in steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from prunus.core.checks import shown
from prunus.core.errors import InputError
from prunus.core.slices import Group

Proportions = Sequence[Sequence[str]]


def quanta_of(counts: Sequence[int], steps: Sequence[int]) -> tuple[int, ...]:
    """The units that groups of these `counts` lose together, in proportion and in multiples of their `steps`.

    >>> quanta_of([192, 3], [1, 1]), quanta_of([48], [8])
    ((64, 1), (8,))
    """
    quanta = [n // math.gcd(*counts) for n in counts]
    times = math.lcm(*(step // math.gcd(step, quantum) for step, quantum in zip(steps, quanta)))
    return tuple(quantum * times for quantum in quanta)


def check_mask(units: int, keep: Tensor) -> None:
    """Raise `InputError` unless `keep` is a boolean tensor with an entry for every unit."""
    if not (isinstance(keep, Tensor) and keep.dtype is torch.bool and keep.shape == (units,)):
        raise InputError(
            f"keep={shown(keep)}: expected a boolean tensor of {units} entries, one a unit of all groups in order, "
            "True = keep."
        )


def check_counts(groups: Sequence[Group], proportions: Proportions, keep: Tensor) -> None:
    """Raise `InputError` when a keep mask has uneven parts, or breaks a step or a proportion."""
    tied = {id for ids in proportions for id in ids}
    kept: dict[str, Fraction] = {}
    for group in groups:
        if group.parts == group.step == 1 and group.id not in tied:
            continue
        rows = keep[group.offset : group.offset + group.units].reshape(group.parts, -1).sum(1)
        if len(rows.unique()) > 1:
            raise InputError(
                f"the plan keeps {rows.tolist()} units of the {group.parts} parts of group '{group.id}'; it must keep "
                "as many of each."
            )
        if int(rows[0]) % group.step:
            raise InputError(
                f"the plan keeps {int(rows[0])} units of group '{group.id}'; what the network calls or holds "
                f"takes multiples of {group.step} there."
            )
        kept[group.id] = Fraction(int(rows[0]))
    count = {group.id: group.count for group in groups}
    for ids in proportions:
        if len({kept[id] / count[id] for id in ids}) > 1:
            told = ", ".join(f"{kept[id]} of {count[id]} of '{id}'" for id in ids)
            raise out_of_proportion(f"the plan keeps {told}", groups, proportions)


def out_of_proportion(what: str, groups: Sequence[Group], proportions: Proportions) -> InputError:
    """The error of a plan that the model's code has no integer for, or no way to take."""
    count = {group.id: group.count for group in groups}
    held = "; ".join(", ".join(f"'{id}' ({count[id]})" for id in ids) for ids in proportions)
    return InputError(
        f"{what}, but the model's code keeps the counts of these groups in proportion: {held}. Keep the same "
        "fraction of each, or trace(..., in_place=False) and take the rewritten network."
    )
