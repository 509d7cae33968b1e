"""A still picture of a result, for a README or a slide."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunus.core.checks import a_path, check_arguments, optional
from prunus.core.writing import replacing
from prunus.report import reading, times, words
from prunus.report.reading import read_result

BEFORE, AFTER, INK, SOFT = "#b9a7b4", "#8a2f66", "#231a21", "#665a63"


def picture(folder: str | Path, path: str | Path | None = None) -> Path:
    """Draw what remains of the costs (left) and the width of every group before and after (right) as a PNG.

    Args:
        folder: a run folder.
        path: where to write; default ``picture.png`` in the run folder.

    Returns: the path of the picture.

    Raises: `FileError` when the folder holds no result.
    """
    check_arguments(locals(), path=optional(a_path))
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    result = read_result(folder)
    path = Path(path) if path is not None else Path(folder) / "picture.png"
    figure = Figure(figsize=(10, 4.4), dpi=144, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(words.headline(result), fontsize=13, fontweight="bold", color=INK, x=0.01, ha="left", wrap=True)
    costs, widths = figure.subplots(1, 2, width_ratios=(1, 1.25))
    _draw_costs(costs, result)
    _draw_widths(widths, reading.widths(result))
    with replacing(path) as new:
        figure.savefig(new, format="png")
    return path


def _draw_costs(axes: Any, result: Mapping[str, Any]) -> None:
    """What is left of every cost, in per cent of the original."""
    rows = []
    for name, key in (("parameters", "params"), ("multiply-adds", "macs"), ("size on disk", "size_bytes")):
        old, new = result["before"].get(key), result["after"].get(key)
        show = words.size if key == "size_bytes" else words.short
        rows.append((name, words.left(old, new), f"{show(old)} → {show(new)}"))
    for t in times.timings(result):
        text = f"{words.milliseconds(t.before)} → {words.milliseconds(t.after)}"
        rows.append((f"time, {t.backend}\nbatch {t.batch}", words.left(t.before, t.after), text))
    rows = [row for row in rows if row[1] is not None][::-1]
    names, fractions, texts = zip(*rows) if rows else ((), (), ())
    at = range(len(rows))
    axes.barh(at, [100] * len(rows), color=BEFORE, height=0.62)
    axes.barh(at, [100 * f for f in fractions], color=AFTER, height=0.62)
    for y, fraction, text in zip(at, fractions, texts):
        axes.text(
            max(100, 100 * fraction) + 3, y, f"{100 * fraction:.0f} %  ({text})", va="center", fontsize=8, color=INK
        )
    axes.set_yticks(list(at), names, fontsize=9, color=INK)
    axes.set_xlim(0, 100)
    axes.set_title("What is left", fontsize=11, loc="left", color=INK)
    _bare(axes)


def _draw_widths(axes: Any, plan: Mapping[str, Mapping[str, int]]) -> None:
    """The width of every group, in execution order from left to right."""
    at = range(len(plan))
    axes.bar(at, [entry["units"] for entry in plan.values()], color=BEFORE, width=0.8, label="before")
    axes.bar(at, [entry["kept"] for entry in plan.values()], color=AFTER, width=0.8, label="after")
    axes.set_title("Channels of every group, first to last", fontsize=11, loc="left", color=INK)
    axes.set_yticks(sorted({entry["units"] for entry in plan.values()})[-6:])
    axes.tick_params(colors=SOFT, labelsize=8, length=0)
    _bare(axes)
    if plan:
        axes.legend(frameon=False, fontsize=9, loc="upper left", labelcolor=INK)


def _bare(axes: Any) -> None:
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
