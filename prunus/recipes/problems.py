"""What is wrong with a recipe, in words, with the line it stands on."""

from __future__ import annotations

from collections.abc import Mapping
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


def say(error: Any, raw: Mapping[str, Any], lines: Mapping[text.Key, int]) -> str:
    """One error of pydantic in words, with its line."""
    place = tuple(p for i, p in enumerate(error["loc"]) if not (i == 2 and error["loc"][0] == "stages"))
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
