"""Coupled groups as a table, for people; alike groups of repeated blocks are told as one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunus.core.checks import a_count, check_arguments, instance
from prunus.report.console import plain, reasons, table
from prunus.report.naming import folded, numbers, place, relative, some, wrapped
from prunus.report.view import View, parts, proportions, together
from prunus.report.words import short

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text


def groups_table(view: View, *, name: str = "", unfold: bool = False, most: int = 4) -> RenderableType:
    """What is coupled in a network, and what is fixed with the reason, for ``rich.print``.

    Args:
        view: a traced network.
        name: what the network is called.
        unfold: show alike groups one by one.
        most: how many names are shown of a long list.
    """
    check_arguments(locals(), view=instance("a prunus.report.View", View), most=a_count)
    from rich.console import Group as Stack
    from rich.text import Text

    shown = table(f"{name or 'Groups'}: what must be cut together")
    rows = look_alike(view, fold=not unfold)
    told = [group_cells(view, alike) for alike in rows]
    shown.add_column("no.")
    shown.add_column("group", overflow="fold", min_width=max((_longest(cells[1]) for cells in told), default=1))
    shown.add_column("units", justify="right")
    shown.add_column("cut together", overflow="fold")
    for alike, (number, what, units, cost) in zip(rows, told):
        names: dict[str, list[str]] = {}
        for n in alike:
            for verb, found in together(view.groups[n - 1]):
                names.setdefault(verb, []).extend(found)
        (own,) = folded(view.groups[n - 1].id for n in alike)
        lines = []
        for verb, found in names.items():
            near = [relative(name, to=own) for name in folded(dict.fromkeys(found))]
            lines.append(f"[dim]{verb}[/] {plain(some(near, most))}")
        shown.add_row(number, f"{what}\n[dim]{cost} a unit[/]", units, "\n".join(lines))
    stack: list[RenderableType] = [shown, summary(view)]
    if any(len(alike) > 1 for alike in rows):
        said = "A row such as '3 × 16' is several alike groups, each cut on its own; --unfold lists them."
        stack.append(Text(said, style="dim"))
    if view.reasons:
        stack += ["", fixed_table(view, most=most)]
    return Stack(*stack)


def _longest(text: str) -> int:
    return max(map(len, text.split("\n")))


def summary(view: View) -> Text:
    """The totals in one sentence, and which groups must stay in proportion."""
    from rich.text import Text

    said = Text(
        f"{len(view.groups)} group{'s' if len(view.groups) != 1 else ''}, {view.groups.units:,} removable units. "
        f"The whole network: {view.cost['params']:,} parameters, {view.cost['macs']:,} multiply-adds per sample.",
        style="bold",
    )
    for tied in proportions(view.groups):
        said.append(
            f"\nGroups {', '.join(f'#{n}' for n in tied)} must keep equal fractions of their units.", style="not bold"
        )
    return said


def look_alike(view: View, *, fold: bool = True) -> list[list[int]]:
    """Numbers (from 1) of groups that are told in one row: the same thing in repeated blocks."""
    rows: dict[object, list[int]] = {}
    for n, group in enumerate(view.groups, 1):
        head, _, tail = place(group.id)
        verbs = tuple(verb for verb, _ in together(group))
        key = (head, tail, group.units, view.unit_names[n - 1], parts(group), verbs) if fold else n
        rows.setdefault(key, []).append(n)
    return list(rows.values())


def group_cells(view: View, alike: Sequence[int]) -> tuple[str, str, str, str]:
    """Number, id, units and cost of a unit, of groups that look alike."""
    first = view.groups[alike[0] - 1]
    times = f"{len(alike)} × " if len(alike) > 1 else ""
    even = f"\nin {parts(first)} even parts" if parts(first) > 1 else ""
    costs = []
    for key, unit in (("params", "params"), ("macs", "MACs")):
        values = sorted(view.unit_costs[n - 1][key] for n in alike)
        low, high = short(values[0]), short(values[-1])
        costs.append(f"{low} {unit}" if low == high else f"{low}..{high} {unit}")
    (what,) = folded(view.groups[n - 1].id for n in alike)
    units = f"{times}{first.units}\n{view.unit_names[alike[0] - 1][first.units != 1]}{even}"
    return numbers(alike, most=3).strip("{}"), plain(wrapped(what)), units, "\n".join(costs)


def fixed_table(view: View, letters: Sequence[str] = (), *, most: int = 4) -> Table:
    """What is fixed, by reason; `letters` name the reasons."""
    rows = []
    for i, (why, what) in enumerate(view.reasons.items()):
        shown = folded(dict.fromkeys(re.sub(r": (\d+) of \1 channels$", r" (all \1)", name) for name in what))
        rows.append((f"{letters[i]}: {why}" if letters else why, shown))
    return reasons(rows, "Fixed: what cannot be cut", most)


def as_data(view: View) -> list[dict[str, object]]:
    """The same for ``--json``: id, units and what they are, the names by what they do, and the cost of a unit."""
    return [
        {
            "group": group.id,
            "units": group.units,
            "kind": name,
            "parts": parts(group),
            "together": dict(together(group)),
            "unit_costs": cost,
        }
        for group, (name, _), cost in zip(view.groups, view.unit_names, view.unit_costs)
    ]
