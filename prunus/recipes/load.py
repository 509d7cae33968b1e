"""From a recipe's name or file, and what the command line overrides, to a checked `Recipe`."""

from __future__ import annotations

import copy
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from prunus.core import FileError, InputError, UnknownNameError, did_you_mean
from prunus.recipes import schema, text
from prunus.recipes.schema import STAGE_KEYS, STAGES, Recipe

BUILTIN = Path(__file__).parent / "builtin"
RUN_KEYS = frozenset(Recipe.model_fields)
NESTED: Mapping[str, type[BaseModel]] = {
    "budget": schema.BudgetSpec,
    "distill": schema.DistillSpec,
    "data": schema.DataSpec,
    "measure": schema.MeasureSpec,
}


def builtin() -> dict[str, Path]:
    """The recipes that come with prunus, by name."""
    return {path.stem: path for path in sorted(BUILTIN.glob("*.yaml"))}


def find(recipe: str | Path) -> Path:
    """The file of a recipe: a path, or the name of a built-in one; raises `UnknownNameError` with the nearest name."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise FileError(f"there is no recipe file '{path}'. `prunus ls recipes` lists the built-in ones.")
        return path
    known = builtin()
    if str(recipe) not in known:
        hint = did_you_mean(str(recipe), known)
        raise UnknownNameError(f"there is no recipe '{recipe}'.{hint} Known: {', '.join(known)}, or a .yaml file.")
    return known[str(recipe)]


def load(recipe: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read, override (``key=value`` by dotted path), fill in defaults and check a recipe.

    Raises: `InputError` that lists everything that is wrong, with lines.

    >>> load("quickstart", ["seed=3"]).seed
    3
    """
    path = find(recipe)
    raw, lines = text.read(path)
    overrides = list(overrides)
    for keys, _ in (_pair(pair) for pair in overrides):
        lines = {place: 0 if _overridden(place, keys) else line for place, line in lines.items()} | {tuple(keys): 0}
    return check(override(raw, overrides), lines, str(path) if str(path) == str(recipe) else f"recipe {recipe}")


def expand(path: str) -> str:
    """A path of a recipe with ``$PRUNUS_SHARED``, other variables and ``~`` put in, for use."""
    shared = os.environ.get("PRUNUS_SHARED", "../shared")
    path = re.sub(r"\$(PRUNUS_SHARED\b|\{PRUNUS_SHARED\})", lambda _: shared, path)
    return os.path.expanduser(os.path.expandvars(path))


def check(raw: dict[str, Any], lines: Mapping[text.Key, int], name: str) -> Recipe:
    """The checked recipe of a dict as `text.parse` gives it."""
    problems = [f"{_at(lines, (key,))}{key}: {why}" for key, why in _misplaced(raw)]
    try:
        recipe = Recipe.model_validate(resolve(raw))
    except ValidationError as error:
        problems += [_say(e, raw, lines) for e in error.errors()]
    if problems:
        count = "1 error" if len(problems) == 1 else f"{len(problems)} errors"
        raise InputError("\n  ".join([f"{name} has {count}:", *problems]))
    return recipe


def dump(recipe: Recipe) -> dict[str, Any]:
    """The recipe with every default written out, as plain data: what ``recipe.yaml`` of a run holds."""
    return recipe.model_dump(mode="json")


# ---- defaults and names ------------------------------------------------------------------------------------------------


def resolve(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Names for all stages, and top-level stage keys handed down to the stages that know them.

    >>> r = resolve({"lr": 1, "stages": [{"do": "finetune"}, {"do": "prune"}]})
    >>> r["stages"]
    [{'lr': 1, 'do': 'finetune', 'name': 'finetune'}, {'do': 'prune', 'name': 'prune'}]
    """
    out = {k: copy.deepcopy(v) for k, v in raw.items() if k in RUN_KEYS}
    defaults = {k: v for k, v in raw.items() if k in STAGE_KEYS}
    stages = raw.get("stages")
    if isinstance(stages, list) and all(isinstance(s, Mapping) for s in stages):
        out["stages"] = [
            _merge(_known_by(stage, defaults), {**stage, "name": name}) for stage, name in zip(stages, names(stages))
        ]
    return out


def names(stages: list[Mapping[str, Any]]) -> list[str]:
    """The name of every stage: its own, else its verb, numbered where unnamed stages repeat it.

    >>> names([{"do": "prune"}, {"do": "export"}, {"do": "prune"}])
    ['prune-1', 'export', 'prune-2']
    """
    total = Counter(str(s.get("do")) for s in stages)
    seen: Counter[str] = Counter()
    out = []
    for stage in stages:
        verb = str(stage.get("do"))
        seen[verb] += 1
        default = verb if total[verb] == 1 else f"{verb}-{seen[verb]}"
        out.append(str(stage.get("name") or default))
    return out


def _known_by(stage: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    kind = STAGES.get(str(stage.get("do")))
    return {} if kind is None else {k: v for k, v in defaults.items() if k in kind.model_fields}


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` put on `base`, mappings inside mappings too."""
    out = copy.deepcopy(dict(base))
    for key, new in over.items():
        old = out.get(key)
        both = isinstance(old, Mapping) and isinstance(new, Mapping)
        out[key] = _merge(old, new) if both else copy.deepcopy(new)  # type: ignore[arg-type]
    return out


# ---- overrides ---------------------------------------------------------------------------------------------------------


def override(raw: Mapping[str, Any], pairs: Iterable[str]) -> dict[str, Any]:
    """`raw` with ``key=value`` put in by dotted path; `raw` itself is left as it is.

    A key of the run (``model``, ``data``, ``data.mean``, ``seed`` ...) is set.  A key of stages (``epochs``,
    ``budget.macs`` ...) is set for every stage that knows it, also where the recipe states one; a part of a value
    (``regularizer.strength``) only where there is such a value.  ``stages.NAME.key`` is set for one stage, and goes last.

    Raises: `InputError` for text without ``=`` or a path that leads nowhere; `UnknownNameError` for an unknown key or
    stage.

    >>> override({"stages": [{"do": "finetune", "epochs": 9}]}, ["epochs=1"])["stages"]
    [{'do': 'finetune', 'epochs': 1}]
    """
    out = copy.deepcopy(dict(raw))
    parsed = [_pair(pair) for pair in pairs]
    for keys, new in sorted(parsed, key=lambda p: p[0][0] == "stages"):  # stable: stages.NAME last
        if keys[0] == "stages":
            _override_stage(out, keys, new)
            continue
        _known_key(keys[0], RUN_KEYS | STAGE_KEYS)
        if keys[0] == "data" and len(keys) > 1 and isinstance(out.get("data"), str):
            out["data"] = {"source": out["data"]}
        own = [s for s in out.get("stages") or () if isinstance(s, dict) and keys[0] in s]
        if keys[0] in STAGE_KEYS and len(keys) > 1:  # a part of a value: only where there is such a value
            own = [s for s in own if s[keys[0]] is not None]
            if not own or keys[0] in out:
                _put(out, keys, new)
        else:
            _put(out, keys, new)
        for stage in own if keys[0] in STAGE_KEYS else ():
            _put(stage, keys, new)
    return out


def _pair(pair: str) -> tuple[list[str], Any]:
    key, equals, new = pair.partition("=")
    if not equals or not key.strip():
        raise InputError(f"'{pair}' is not an override; expected key=value, e.g. budget.macs=0.5.")
    return key.strip().split("."), text.value(new)


def _overridden(place: text.Key, keys: list[str]) -> bool:
    """Whether the value at `place` is what the override of `keys` set."""
    inner = place[2:] if place[:1] == ("stages",) else place
    path = tuple(keys[2:] if keys[0] == "stages" else keys)
    return bool(inner) and inner[: len(path)] == path


def _override_stage(out: dict[str, Any], keys: list[str], new: Any) -> None:
    stages = out.get("stages") or []
    by_name = dict(zip(names(stages), stages))
    matches = [n for n in by_name if ".".join(keys[1:]).startswith(n + ".")]
    if not matches:
        given = keys[1] if len(keys) > 1 else ""
        hint = did_you_mean(given, by_name)
        raise UnknownNameError(
            f"override '{'.'.join(keys)}': there is no stage '{given}'.{hint} Expected stages.NAME.key=value with NAME "
            f"one of {', '.join(by_name)}."
        )
    name = max(matches, key=len)
    path = ".".join(keys[1:]).removeprefix(name + ".").split(".")
    kind = STAGES.get(str(by_name[name].get("do")))
    if kind is not None:
        _known_key(path[0], kind.model_fields)
    _put(by_name[name], path, new)


def _known_key(key: str, known: Iterable[str]) -> None:
    if key not in known:
        raise UnknownNameError(f"override: there is no key '{key}'.{did_you_mean(key, known)}")


def _put(data: dict[str, Any], keys: list[str], new: Any) -> None:
    for key in keys[:-1]:
        inner = data.get(key)
        data[key] = inner if isinstance(inner, dict) else {"name": inner} if isinstance(inner, str) else {}
        data = data[key]
    data[keys[-1]] = new


# ---- what is wrong, and where --------------------------------------------------------------------------------------------


def _misplaced(raw: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Top-level keys that nothing knows, or that no stage of this recipe takes."""
    found = []
    stages = [s for s in raw.get("stages") or () if isinstance(s, Mapping)]
    taken = {key for s in stages for key in _known_by(s, dict.fromkeys(STAGE_KEYS))}
    for key in raw:
        if key not in RUN_KEYS | STAGE_KEYS:
            found.append((str(key), f"unknown key.{did_you_mean(str(key), RUN_KEYS | STAGE_KEYS)}"))
        elif key in STAGE_KEYS and stages and key not in taken:
            found.append((str(key), "no stage of this recipe takes this key."))
    return found


def _say(error: Any, raw: Mapping[str, Any], lines: Mapping[text.Key, int]) -> str:
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
    elif "given" not in message and not isinstance(error.get("input"), (dict, list, BaseModel)):
        if not error["type"].startswith("value_error"):
            message += f"; given {error.get('input')!r}."
    where = ".".join(_readable(place, raw))
    return f"{_at(lines, place)}{where + ': ' if where else ''}{message}"


def _siblings(loc: tuple[Any, ...]) -> list[str]:
    """The keys that are known where `loc` points."""
    parent = loc[-2] if len(loc) > 1 else None
    if parent in NESTED:
        return list(NESTED[parent].model_fields)
    return list(STAGES[parent].model_fields) if parent in STAGES else list(RUN_KEYS)


def _readable(place: tuple[Any, ...], raw: Mapping[str, Any]) -> list[str]:
    """``stages.2.epochs`` with the stage's name instead of its number."""
    stages = raw.get("stages")
    if len(place) > 1 and place[0] == "stages" and isinstance(stages, list):
        stage = stages[place[1]]
        name = names(stages)[place[1]] if isinstance(stage, Mapping) and "do" in stage else f"number {place[1] + 1}"
        return ["stages", name, *(str(p) for p in place[2:])]
    return [str(p) for p in place]


def _at(lines: Mapping[text.Key, int], place: tuple[Any, ...]) -> str:
    """``line N, `` of a key, or of the nearest thing around it; of a handed-down default where that is the source."""
    handed = place[2:] if place[:1] == ("stages",) else ()
    for candidate in (place, handed, *(place[:n] for n in range(len(place) - 1, 0, -1))):
        if candidate and candidate in lines:
            return f"line {lines[candidate]}, " if lines[candidate] else "override, "
    return ""
