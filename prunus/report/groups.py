"""Coupled groups, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from prunus.core import Group, Groups, Slice
from prunus.report.console import _plain, _reasons, _table, some
from prunus.report.words import short

if TYPE_CHECKING:
    from rich.console import RenderableType

VERBS = (  # what a person calls the roles
    ("made by", ("out",)),
    ("per channel", ("depthwise",)),
    ("scaled by", ("norm_scale",)),
    ("chosen by", ("index",)),
    ("read by", ("in",)),
    ("also", ("other",)),
)


def groups_table(groups: Groups, *, most: int = 4) -> RenderableType:
    """What is coupled in a network, and what is fixed with the reason, for ``rich.print``.

    Args:
        groups: a traced network.
        most: how many names are shown of a long list.
    """
    from rich.console import Group as Stack
    from rich.text import Text

    cost = groups.costs()
    table = _table("Groups: what must be cut together")
    table.add_column("group", overflow="fold")
    table.add_column("units", justify="right")
    table.add_column("cut together", overflow="fold")
    table.add_column("a unit costs", justify="right")
    for group in groups:
        unit = unit_cost(groups, group, cost)
        rows = [f"[dim]{verb}[/] {_plain(some(folded(names), most))}" for verb, names in together(group)]
        costs = f"{short(unit['params'])} params\n{short(unit['macs'])} MACs"
        table.add_row(_plain(group.id), str(group.units), "\n".join(rows), costs)
    summary = (
        f"{len(groups)} groups, {groups.units:,} removable units. "
        f"The whole network: {cost['params']:,} parameters, {cost['macs']:,} multiply-adds per sample."
    )
    parts: list[RenderableType] = [table, Text(summary, style="bold")]
    reasons: dict[str, list[str]] = {}
    for fixed in groups.fixed:
        reasons.setdefault(fixed.why, []).append(fixed.what)
    if reasons:
        parts += ["", _reasons(list(reasons.items()), "Fixed: what cannot be cut", most)]
    return Stack(*parts)


def together(group: Group) -> list[tuple[str, list[str]]]:
    """What a group cuts, by what it does with the units: ``[("made by", ["conv1"]), ("read by", ["conv2"])]``."""
    out = []
    for verb, roles in VERBS:
        names = list(dict.fromkeys(owner(s) for s in group.with_role(*roles)))
        if names:
            out.append((verb, names))
    return out


def owner(part: Slice) -> str:
    """The module of a slice: its name without the last word when that is the usual one.

    >>> owner(Slice("layer1.conv.weight", 0, torch.zeros(1, 1), "out", torch.zeros(1)))
    'layer1.conv'
    """
    module, _, last = part.name.rpartition(".")
    return module if module and last in ("weight", "bias", "running_mean", "running_var") else part.name


def folded(names: Sequence[str]) -> list[str]:
    """Names that differ in one number only, as one.

    >>> folded(["conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2", "layer2.0.conv2"])
    ['conv1', 'layer1.{0..2}.conv2', 'layer2.0.conv2']
    """
    found: dict[tuple[str, str], list[int]] = {}
    for name in names:
        words = name.split(".")
        at = max((i for i, word in enumerate(words) if word.isdigit()), default=None)
        alike = (name, "") if at is None else (".".join((*words[:at], "")), ".".join(("", *words[at + 1 :])))
        found.setdefault(alike, []).extend([] if at is None else [int(words[at])])
    return [head + _numbers(sorted(numbers)) + tail for (head, tail), numbers in found.items()]


def _numbers(numbers: Sequence[int]) -> str:
    """``0``, ``{0..3}``, ``{0,2}``, or nothing."""
    if len(numbers) < 2:
        return "".join(map(str, numbers))
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{{{numbers[0]}..{numbers[-1]}}}"
    return "{" + ",".join(map(str, numbers)) + "}"


def unit_cost(groups: Groups, group: Group, whole: Mapping[str, int] | None = None) -> dict[str, int]:
    """What the network, of cost `whole`, costs less without the first unit of `group`, in parameters and macs."""
    keep = torch.ones(groups.units, dtype=torch.bool)
    keep[group.offset] = False
    whole, without = whole or groups.costs(), groups.costs(keep)
    return {kind: whole[kind] - without[kind] for kind in whole}


def as_data(groups: Groups) -> list[dict[str, object]]:
    """The same for ``--json``: id, units, the names by what they do, and the cost of a unit."""
    cost = groups.costs()
    return [
        {"group": g.id, "units": g.units, "together": dict(together(g)), "unit_costs": unit_cost(groups, g, cost)}
        for g in groups
    ]
