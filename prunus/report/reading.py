"""A run folder as data: what is there is checked, what is missing is noted, nothing is guessed."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunus.core import FileError
from prunus.core.checks import check_arguments

NEEDED = ("recipe", "model", "before", "after")


@dataclass(frozen=True)
class Epoch:
    """One row of metrics.csv: an epoch of one stage; what was not measured is None."""

    stage: str
    epoch: int
    loss: float | None
    accuracy: float | None
    lr: float | None


@dataclass(frozen=True)
class Run:
    """A run folder: the result, and what lies beside it.

    Attributes:
        result: result.json.
        epochs: metrics.csv in order.
        gammas: ``{"before" | "after": values of all BatchNorm scales}``.
        recipe: recipe.yaml as text.
        missing: what a complete folder would have had, in words.
    """

    folder: Path
    result: Mapping[str, Any]
    epochs: tuple[Epoch, ...] = ()
    gammas: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    recipe: str = ""
    missing: tuple[str, ...] = ()


def read(folder: str | Path) -> Run:
    """Read a run folder; raises `FileError` when it holds no readable result.json."""
    check_arguments(locals())
    folder = Path(folder)
    result = read_result(folder)
    missing: list[str] = []
    epochs = _optional(folder / "metrics.csv", _epochs, (), missing)
    gammas = _optional(folder / "gammas.json", _gammas, {}, missing)
    recipe = _optional(folder / "recipe.yaml", lambda text: text, "", missing)
    return Run(folder, result, epochs, gammas, recipe, tuple(missing))


def read_result(folder: str | Path) -> dict[str, Any]:
    """The result.json of a run folder (or that file itself), with everything a report needs.

    Raises: `FileError` when it is missing, truncated, or not of prunus.
    """
    check_arguments(locals())
    path = Path(folder)
    path = path / "result.json" if path.is_dir() else path
    if not path.is_file():
        raise FileError(
            f"there is no result in '{folder}': expected a run folder with a result.json, as `prunus run` writes. "
            "If the run was interrupted, continue it with --resume."
        )
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FileError(f"'{path}' is not JSON ({error}); it was truncated or edited. Run again.") from None
    lacking = [k for k in NEEDED if k not in result] if isinstance(result, dict) else list(NEEDED)
    if lacking:
        raise FileError(f"'{path}' is not a result of prunus: it has no {', '.join(lacking)}.")
    return result


def _optional(path: Path, parse: Any, default: Any, missing: list[str]) -> Any:
    if not path.is_file():
        missing.append(f"{path.name} is not in the folder")
        return default
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        missing.append(f"{path.name} could not be read ({type(error).__name__}: {error})")
        return default


def _epochs(text: str) -> tuple[Epoch, ...]:
    rows = csv.DictReader(text.splitlines())
    return tuple(
        Epoch(r["stage"], int(r["epoch"]), *(_number(r.get(column)) for column in ("loss", "accuracy", "lr")))
        for r in rows
    )


def _number(text: str | None) -> float | None:
    """A finite number or None.

    >>> _number("0.5"), _number(""), _number("nan")
    (0.5, None, None)
    """
    if not text or not text.strip():
        return None
    value = float(text)
    return value if math.isfinite(value) else None


def _gammas(text: str) -> dict[str, tuple[float, ...]]:
    data = json.loads(text)
    return {when: tuple(_flat(data[when])) for when in ("before", "after") if data.get(when)}


def _flat(values: Any) -> Iterator[float]:
    if isinstance(values, Mapping):
        values = list(values.values())
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        elif math.isfinite(value):
            yield float(value)


def widths(result: Mapping[str, Any]) -> dict[str, Mapping[str, int]]:
    """The plan in the order of the network; names that a file has sorted as text are sorted by their numbers.

    >>> list(widths({"plan": {"c.0": {}, "c.10": {}, "c.2": {}}}))
    ['c.0', 'c.2', 'c.10']
    """
    plan = dict(result.get("plan") or {})
    if list(plan) != sorted(plan):
        return plan
    return {name: plan[name] for name in sorted(plan, key=_by_number)}


def _by_number(name: str) -> list[tuple[bool, int, str]]:
    """Text and numbers of a name apart, so that 2 comes before 10."""
    parts = re.split(r"(\d+)", name)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]
