"""Results on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunus.core.checks import a_folder, check_arguments, sequence
from prunus.core.words import a_result
from prunus.report import reading, times, words
from prunus.report.naming import some
from prunus.report.reading import read_result

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

BAR = 32  # characters of the widest bar


def terminal(result: Mapping[str, Any]) -> RenderableType:
    """What a run did, for a terminal: before and after, widths, stages, what was left alone, and a verdict.

    Args:
        result: the content of result.json.

    Returns: something that ``rich.print`` shows.
    """
    check_arguments(locals(), result=a_result)
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [before_after(result)]
    if result.get("plan"):
        parts += ["", widths(reading.widths(result))]
    if result.get("stages"):
        parts += ["", stages(result["stages"])]
    left = words.alone(result)
    if left:
        parts += ["", reasons(left, "Left alone")]
    said = [words.proof(result), *words.exports(result), *(str(note) for note in result.get("notes") or [])]
    parts += ["", *(Text(sentence) for sentence in said), "", Text(" ".join(words.verdict(result)), style="bold")]
    return Group(*parts)


def before_after(result: Mapping[str, Any]) -> Table:
    """Costs, times and quality before and after the run."""
    shown = table(f"{words.short_name(str(result['model']))} ({result['recipe']})")
    for name, justify in (("", "left"), ("before", "right"), ("after", "right"), ("change", "right")):
        shown.add_column(name, justify=justify)  # type: ignore[arg-type]
    before, after = result["before"], result["after"]
    for name, key in (
        ("parameters", "params"),
        ("multiply-adds per sample", "macs"),
        ("size on disk", "size_bytes"),
    ):
        old, new = before.get(key), after.get(key)
        if old is not None or new is not None:
            show = words.size if key == "size_bytes" else _exact
            shown.add_row(name, show(old), show(new), _left(words.left(old, new)))
    if times.sparse(result):
        old, new = before.get("density"), after.get("density")
        shown.add_row("weights that are not zero", words.percent(old), words.percent(new), _left(words.left(old, new)))
    for t in times.timings(result):
        change = "" if t.ratio is None else f"{t.ratio:.2f}x faster" if t.ratio >= 1 else f"{1 / t.ratio:.2f}x slower"
        shown.add_row(plain(t.where), words.milliseconds(t.before), words.milliseconds(t.after), change)
    shown.add_row(plain(words.quality(result)[0]), *words.quality_text(result))
    return shown


def widths(plan: Mapping[str, Mapping[str, int]]) -> Table:
    """The width of every group before and after, as bars."""
    shown = table("Width of every group: kept of all")
    shown.add_column("group")
    shown.add_column("kept")
    shown.add_column("", justify="right", no_wrap=True)
    widest = max((entry["units"] for entry in plan.values()), default=1)
    for name, entry in plan.items():
        shown.add_row(plain(name), _bar(entry["kept"], entry["units"], widest), f"{entry['kept']} / {entry['units']}")
    return shown


def stages(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Every stage of the run and the network it left."""
    shown = table("Stages")
    shown.add_column("stage")
    for name in ("time", "parameters", "multiply-adds", "accuracy"):
        shown.add_column(name, justify="right")
    for row in rows:
        cells = (words.duration(row.get("seconds")), _exact(row.get("params")), _exact(row.get("macs")))
        shown.add_row(plain(str(row.get("name", "?"))), *cells, words.percent(row.get("accuracy"), 2))
    return shown


def compare(folders: Iterable[str | Path]) -> Table:
    """Several runs side by side, one column for each of `folders`; raises `FileError` for one without a result."""
    check_arguments(locals(), folders=sequence("paths of run folders", a_folder.holds))
    results = [(Path(folder), read_result(folder)) for folder in folders]
    shown = table("Runs compared")
    shown.add_column("")
    for folder, _ in results:
        shown.add_column(plain(folder.resolve().name), overflow="fold")
    columns = [_column(result) for _, result in results]
    for row in dict.fromkeys(name for column in columns for name in column):
        shown.add_row(plain(row), *(plain(column.get(row, "-")) for column in columns))
    return shown


def _column(result: Mapping[str, Any]) -> dict[str, str]:
    """What `compare` says of one run, by row."""
    before, after = result["before"], result["after"]
    column = {"recipe": str(result["recipe"]), "model": words.short_name(str(result["model"]))}
    for name, key in (("parameters", "params"), ("multiply-adds", "macs")):
        column[name] = f"{words.short(after.get(key))}, {_left(words.left(before.get(key), after.get(key)))}"
    for t in times.timings(result):
        column[t.where] = f"{words.milliseconds(t.after)}" + ("" if t.ratio is None else f", {t.ratio:.2f}x faster")
    name, (_, new, change) = words.quality(result)[0], words.quality_text(result)
    column[name] = f"{new}, {change}" if change else new
    column["verified"] = "yes" if result.get("verified") else "no"
    column["time taken"] = words.duration(result.get("seconds"))
    return column


def table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=plain(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _bar(kept: int, units: int, widest: int) -> str:
    """Kept in full blocks, removed in light ones; at least one block each where there is something.

    >>> _bar(16, 32, 64)
    '████████[dim]░░░░░░░░[/]'
    """
    whole = max(round(BAR * units / widest), 1)
    full = round(whole * kept / units) if units else 0
    full = min(max(full, 1 if kept else 0), whole - 1 if kept < units and whole > 1 else whole)
    return "█" * full + (f"[dim]{'░' * (whole - full)}[/]" if whole > full else "")


def reasons(rows: Sequence[tuple[str, Sequence[str]]], title: str, most: int = 4) -> Table:
    """Things gathered by reason; long lists are shortened and counted."""
    shown = table(title)
    shown.add_column("what", overflow="fold")
    shown.add_column("why", overflow="fold")
    for why, what in rows:
        shown.add_row(plain(some(what, most)), plain(why))
    return shown


def plain(text: str) -> str:
    """Text of the user, with what rich would take for markup escaped."""
    from rich.markup import escape

    return escape(text)


def _exact(n: float | None) -> str:
    return "not measured" if n is None else f"{n:,.0f}"


def _left(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.1f} % left"
