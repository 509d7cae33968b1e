"""One self-contained page about a run, for a person who never read the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prunus.core.checks import check_arguments
from prunus.core.writing import write_text
from prunus.report import charts, reading, times, words
from prunus.report.inputs import inputs
from prunus.report.reading import Run, read

SMALL = 0.01  # a scale below this fraction of the largest one is called close to zero


def html(folder: str | Path) -> Path:
    """Write ``report.html`` in a run folder: one file, no scripts, nothing fetched from anywhere.

    Reads result.json, and metrics.csv, gammas.json and recipe.yaml where they are; what is missing is said on the page.

    Returns: the path of the page.

    Raises: `FileError` when the folder holds no result, `WriteError` when the page cannot be written.
    """
    check_arguments(locals())
    run = read(folder)
    path = run.folder / "report.html" if run.folder.is_dir() else run.folder.parent / "report.html"
    write_text(path, page(run))
    return path


def page(run: Run) -> str:
    """The page as text."""
    return render("report.html.j2", content(run))


def render(template: str, content: Mapping[str, Any]) -> str:
    """One of the templates with its content; what the user wrote stays text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("prunus.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(content)


def content(run: Run) -> dict[str, Any]:
    """Everything the template shows, in words."""
    result = run.result
    return {
        "headline": words.headline(result),
        "model": str(result["model"]),
        "name": words.short_name(str(result["model"])),
        "recipe_name": str(result["recipe"]),
        "verdict": words.verdict(result),
        "facts": _facts(result),
        "cards": cards(result),
        "widths": widths(reading.widths(result)),
        "gammas": gammas(run.gammas),
        "little_sparsity": little_sparsity(run.gammas),
        "inputs": inputs(result),
        "curves": curves(run),
        "timings": timings(result),
        "stages": [_stage(row) for row in result.get("stages") or []],
        "alone": words.alone(result),
        "proof": words.proof(result),
        "exports": words.exports(result),
        "notes": [str(note) for note in result.get("notes") or []],
        "verified": bool(result.get("verified")),
        "recipe": run.recipe,
        "versions": {str(k): str(v) for k, v in (result.get("versions") or {}).items()},
        "missing": run.missing,
    }


def _facts(result: Mapping[str, Any]) -> list[str]:
    """The small print under the title."""
    facts = [f"recipe {result['recipe']}", f"model {result['model']}"]
    if result.get("seed") is not None:
        facts.append(f"seed {result['seed']}")
    if result.get("seconds") is not None:
        facts.append(f"took {words.duration(result['seconds'])}")
    return facts


def cards(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The before/after cards: name, what it means, both values, what is left of the bar, and the change."""
    before, after = result["before"], result["after"]
    costs = (
        ("Parameters", "numbers the network has to remember", "params", words.short),
        ("Computation", "multiply-adds for one input", "macs", words.short),
        ("Size", "bytes on disk", "size_bytes", words.size),
    )
    out = [
        _cost_card(name, hint, before.get(key), after.get(key), show)
        for name, hint, key, show in costs
        if key != "size_bytes" or before.get(key) is not None or after.get(key) is not None
    ]
    timing = times.main_timing(result)
    if timing is not None:
        card = _cost_card("Time", timing.where, timing.before, timing.after, words.milliseconds)
        ratio = timing.ratio or 1.0
        out.append({**card, "change": words.faster(ratio), "mood": _mood(ratio - 1, 0.03)})
    return [*out, _quality_card(result)]


def _quality_card(result: Mapping[str, Any]) -> dict[str, Any]:
    name, old, new = words.quality(result)
    before, after, change = words.quality_text(result)
    hint = "share of unseen inputs it gets right" if name == "accuracy" else "measured on unseen data"
    card: dict[str, Any] = {"name": name[:1].upper() + name[1:], "hint": hint, "before": before, "after": after}
    card |= {"change": change, "mood": "even", "old": None, "new": None}
    if old is not None and new is not None:
        card["mood"] = _mood(new - old, 0.0005)
        if name == "accuracy":
            card |= {"old": 100 * old, "new": 100 * new}
    return card


def _cost_card(name: str, hint: str, old: float | None, new: float | None, show: Any) -> dict[str, Any]:
    fraction = words.left(old, new)
    card: dict[str, Any] = {"name": name, "hint": hint, "before": show(old), "after": show(new)}
    if fraction is None:
        return card | {"change": "", "mood": "even", "old": None, "new": None}
    saved = 1 - fraction
    change = "unchanged" if abs(saved) < 5e-4 else f"{100 * abs(saved):.0f} % {'less' if saved > 0 else 'more'}"
    bars = {"old": 100 / max(fraction, 1), "new": 100 * fraction / max(fraction, 1)}
    return card | {"change": change, "mood": _mood(saved, 5e-4)} | bars


def _mood(gain: float, tolerance: float) -> str:
    """Whether a change is to the good."""
    return "even" if abs(gain) <= tolerance else "good" if gain > 0 else "bad"


def widths(plan: Mapping[str, Mapping[str, int]]) -> list[dict[str, Any]]:
    """The bars of every group: its share of the widest, and what is kept of it."""
    widest = max((entry["units"] for entry in plan.values()), default=1) or 1
    return [
        {
            "name": name,
            "units": entry["units"],
            "kept": entry["kept"],
            "old": 100 * entry["units"] / widest,
            "new": 100 * entry["kept"] / widest,
        }
        for name, entry in plan.items()
    ]


def gammas(values: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """The histograms of the channel scales before and after sparse training, on one axis."""
    sizes = {when: sorted(abs(v) for v in found) for when, found in values.items()}
    everything = sorted(v for found in sizes.values() for v in found)
    if not everything:
        return []
    upper = everything[min(int(len(everything) * 0.995), len(everything) - 1)]  # a few giants would squeeze the rest
    small = SMALL * everything[-1]
    out = []
    for when, title in (("before", "Before sparse training"), ("after", "After sparse training")):
        found = sizes.get(when)
        if found:
            chart = charts.histogram(found, upper=upper, title=title, kind=when)
            near = sum(v <= small for v in found)
            out.append(
                {"title": title, "chart": chart, "near": near, "count": len(found), "share": _share(near, len(found))}
            )
    return out


def little_sparsity(values: Mapping[str, Sequence[float]]) -> bool:
    """Whether sparse training left fewer than one scale in twenty close to zero.

    >>> little_sparsity({"after": [1.0, 0.9, 0.8]}), little_sparsity({"after": [1.0, 0.0]})
    (True, False)
    """
    after = [abs(v) for v in values.get("after") or ()]
    largest = max((abs(v) for found in values.values() for v in found), default=0.0)
    return bool(after) and sum(v <= SMALL * largest for v in after) < 0.05 * len(after)


def _share(part: int, whole: int) -> str:
    """A share in whole per cent, never rounded to none or all when it is not.

    >>> _share(1, 1008), _share(0, 8), _share(4, 8)
    ('under 1 %', '0 %', '50 %')
    """
    if 0 < part < 0.01 * whole:
        return "under 1 %"
    return "over 99 %" if 0.99 * whole < part < whole else f"{100 * part / whole:.0f} %"


def curves(run: Run) -> list[dict[str, str]]:
    """Accuracy and loss over all epochs, where they were measured."""
    stages = [epoch.stage for epoch in run.epochs]
    wanted = (
        ("Accuracy while training", [e.accuracy for e in run.epochs], lambda v: f"{100 * v:.4g} %"),
        ("Loss while training", [e.loss for e in run.epochs], lambda v: f"{v:.3g}"),
    )
    drawn = [{"title": t, "chart": charts.lines(values, stages, title=t, show=show)} for t, values, show in wanted]
    return [curve for curve in drawn if curve["chart"]]


def timings(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Latency bars: every backend and batch has its own scale, because they differ by orders of magnitude."""
    out = []
    for t in times.timings(result):
        longest = max(t.before or 0, t.after or 0) or 1
        change, mood = ("", "even") if t.ratio is None else (words.faster(t.ratio), _mood(t.ratio - 1, 0.03))
        bars = [("before", t.before), ("after", t.after)]
        rows = [{"when": when, "text": words.milliseconds(ms), "width": 100 * (ms or 0) / longest} for when, ms in bars]
        out.append({"where": t.where, "rows": rows, "change": change, "mood": mood})
    return out


def _stage(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "name": str(row.get("name", "?")),
        "time": words.duration(row.get("seconds")),
        "params": "not measured" if row.get("params") is None else f"{row['params']:,}",
        "macs": "not measured" if row.get("macs") is None else f"{row['macs']:,}",
        "accuracy": words.percent(row.get("accuracy"), 2),
    }
