"""Defaults handed down to the stages, names for all of them, and what the command line overrides."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from prunus.core import InputError, UnknownNameError, did_you_mean
from prunus.recipes import text
from prunus.recipes.schema import STAGE_KEYS, STAGES, Recipe

RUN_KEYS = frozenset(Recipe.model_fields)
SHORT = {"data": "source", "basis": "sharing"}  # what a text in the place of a mapping says; else its name


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
            _merge(known_by(stage, defaults), {**stage, "name": name}) for stage, name in zip(stages, names(stages))
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


def known_by(stage: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
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


def override(raw: Mapping[str, Any], pairs: Iterable[str]) -> dict[str, Any]:
    """`raw` with ``key=value`` put in by dotted path; `raw` itself is left as it is.

    A key of the run (``model``, ``data``, ``data.mean``, ``seed`` ...) is set.  A key of stages (``epochs``,
    ``budget.macs`` ...) is set for every stage that knows it, also where the recipe states one; a part of a value
    (``regularizer.strength``) only where there is such a value.  ``stages.NAME.key`` is set for one stage, and goes
    last.

    Raises: `InputError` for text without ``=`` or a path that leads nowhere; `UnknownNameError` for an unknown key or
    stage.

    >>> override({"stages": [{"do": "finetune", "epochs": 9}]}, ["epochs=1"])["stages"]
    [{'do': 'finetune', 'epochs': 1}]
    """
    out = copy.deepcopy(dict(raw))
    parsed = [pair_of(pair) for pair in pairs]
    for keys, new in sorted(parsed, key=lambda p: p[0][0] == "stages"):  # stable: stages.NAME last
        if keys[0] == "stages":
            _override_stage(out, keys, new)
            continue
        _known_key(keys[0], RUN_KEYS | STAGE_KEYS)
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


def pair_of(pair: str) -> tuple[list[str], Any]:
    """The dotted path and the value of ``key=value``."""
    key, equals, new = pair.partition("=")
    if not equals or not key.strip():
        raise InputError(f"'{pair}' is not an override; expected key=value, e.g. budget.macs=0.5.")
    return key.strip().split("."), text.value(new)


def overridden(place: text.Key, keys: list[str]) -> bool:
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
        short = {SHORT.get(key, "name"): inner} if isinstance(inner, str) else {}
        data[key] = inner if isinstance(inner, dict) else short
        data = data[key]
    data[keys[-1]] = new
