"""What is wrong with a recipe, in words, with the line it stands on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from prunus.core import did_you_mean
from prunus.recipes import schema, text
from prunus.recipes.resolve import RUN_KEYS, known_by, names
from prunus.recipes.schema import STAGE_KEYS, STAGES, Recipe

NESTED: Mapping[str, type[BaseModel]] = {
    "budget": schema.BudgetSpec,
    "distill": schema.DistillSpec,
    "data": schema.DataSpec,
    "measure": schema.MeasureSpec,
}


_ALTERNATIVE = re.compile(r"^(int|float|bool|str|(list|dict|literal|constrained)[\[-].*)$")  # of a union, in a place


def malformed(raw: Mapping[str, Any], lines: Mapping[text.Key, int]) -> str | None:
    """What is wrong with the stages as a whole: they are no list, or a stage has no keys."""
    stages = raw.get("stages")
    form = "expected a list of stages, one line each: - {do: prune}."
    if stages is not None and not isinstance(stages, list):
        return f"{at(lines, ('stages',))}stages: {form} Given {stages!r}."
    for n, stage in enumerate(stages or ()):
        if not isinstance(stage, Mapping):
            return f"{at(lines, ('stages', n))}stages, number {n + 1}: {form} Given {stage!r}."
    return None


def misplaced(raw: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Top-level keys that nothing knows, or that no stage of this recipe takes."""
    found = []
    stages = [s for s in raw.get("stages") or () if isinstance(s, Mapping)]
    taken = {key for s in stages for key in known_by(s, dict.fromkeys(STAGE_KEYS))}
    for key in raw:
        if key not in RUN_KEYS | STAGE_KEYS:
            found.append((str(key), f"unknown key.{did_you_mean(str(key), RUN_KEYS | STAGE_KEYS)}"))
        elif key in STAGE_KEYS and stages and key not in taken:
            found.append((str(key), "no stage of this recipe takes this key."))
    return found


def told(errors: Iterable[Any], raw: Mapping[str, Any], lines: Mapping[text.Key, int]) -> list[str]:
    """The errors of pydantic in words; those of the alternatives that one value may be are one."""
    by_place: dict[tuple[Any, ...], list[Any]] = {}
    for error in errors:
        by_place.setdefault(_place(error, lines), []).append(error)
    out = []
    for same in by_place.values():
        first = dict(same[0])
        if len({e["msg"] for e in same}) > 1:
            first["msg"] = " or ".join(dict.fromkeys(e["msg"].partition(",")[0] for e in same))
            first["msg"] = first["msg"].replace(" or Input should be ", " or ")
        out.append(say(first, raw, lines))
    return out


def _place(error: Any, lines: Mapping[text.Key, int]) -> tuple[Any, ...]:
    """Where a recipe has the value: without the kind of stage and the alternative of a union, handed down or not."""
    place = tuple(p for i, p in enumerate(error["loc"]) if not (i == 2 and error["loc"][0] == "stages"))
    ends = [i for i, p in enumerate(place) if _ALTERNATIVE.match(str(p))]
    place = place[: ends[0]] if ends else place
    handed_down = place[:1] == ("stages",) and place not in lines and place[2:] in lines
    return place[2:] if handed_down else place


def say(error: Any, raw: Mapping[str, Any], lines: Mapping[text.Key, int]) -> str:
    """One error of pydantic in words, with its line."""
    place = _place(error, lines)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = f"unknown key.{did_you_mean(str(place[-1]), _siblings(error['loc']))}"
    elif error["type"] == "missing":
        message = "is missing."
    elif error["type"].startswith("union_tag"):
        given = (error.get("input") or {}).get("do") if isinstance(error.get("input"), Mapping) else None
        message = f"do: {given!r} is not a stage.{did_you_mean(str(given), STAGES)} Known: {', '.join(STAGES)}."
    elif error["type"] != "value_error" and not isinstance(error.get("input"), (dict, list, BaseModel)):
        message += f"; given {error.get('input')!r}."
    where = ".".join(_readable(place, raw))
    return f"{at(lines, place)}{where + ': ' if where else ''}{message}"


def _siblings(loc: tuple[Any, ...]) -> list[str]:
    """The keys that are known where `loc` points."""
    parent = loc[-2] if len(loc) > 1 else None
    model = NESTED.get(str(parent)) or STAGES.get(str(parent)) or Recipe
    return list(model.model_fields)


def _readable(place: tuple[Any, ...], raw: Mapping[str, Any]) -> list[str]:
    """``stages.2.epochs`` with the stage's name instead of its number."""
    stages = raw.get("stages")
    if len(place) > 1 and place[0] == "stages" and isinstance(stages, list):
        stage = stages[place[1]]
        name = names(stages)[place[1]] if isinstance(stage, Mapping) and "do" in stage else f"number {place[1] + 1}"
        return ["stages", name, *(str(p) for p in place[2:])]
    return [str(p) for p in place]


def at(lines: Mapping[text.Key, int], place: tuple[Any, ...]) -> str:
    """``line N, `` of a key, or of the nearest thing around it; of a handed-down default where that is the source."""
    handed = place[2:] if place[:1] == ("stages",) else ()
    for candidate in (place, handed, *(place[:n] for n in range(len(place) - 1, 0, -1))):
        if candidate and candidate in lines:
            return f"line {lines[candidate]}, " if lines[candidate] else "override, "
    return ""
