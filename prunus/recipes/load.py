"""From a recipe's name or file, and what the command line overrides, to a checked `Recipe`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prunus.core import FileError, InputError, UnknownNameError, did_you_mean
from prunus.core.checks import Kind, a_mapping, a_path, a_text, check_arguments, instance, is_int, some_names
from prunus.recipes import text
from prunus.recipes.problems import at, malformed, misplaced, told
from prunus.recipes.resolve import overridden, override, pair_of, resolve
from prunus.recipes.schema import Recipe

BUILTIN = Path(__file__).parent / "builtin"
SOME_LINES = Kind("a dictionary {key: line}", lambda v: isinstance(v, Mapping) and all(map(is_int, v.values())))


def builtin() -> dict[str, Path]:
    """The recipes that come with prunus, by name."""
    return {path.stem: path for path in sorted(BUILTIN.glob("*.yaml"))}


def find(recipe: str | Path) -> Path:
    """The file of a recipe: a path, or the name of a built-in one.

    Raises: `UnknownNameError` with the nearest name; `FileError` when there is no file at the path.
    """
    check_arguments(locals(), recipe=a_path)
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
    """Read, override (`overrides`: ``key=value`` by dotted path), fill in defaults and check a recipe.

    Raises: `InputError` that lists everything that is wrong, with lines.

    >>> load("quickstart", ["seed=3"]).seed
    3
    """
    check_arguments(locals(), recipe=a_path, overrides=some_names)
    path = find(recipe)
    raw, lines = text.read(path)
    _well_formed(raw, lines, str(path))
    overrides = list(overrides)
    for keys, _ in (pair_of(pair) for pair in overrides):
        lines = {place: 0 if overridden(place, keys) else line for place, line in lines.items()} | {tuple(keys): 0}
    return check(override(raw, overrides), lines, str(path) if str(path) == str(recipe) else f"recipe {recipe}")


def expand(path: str) -> str:
    """A path of a recipe with ``$PRUNUS_SHARED``, other variables and ``~`` put in, for use."""
    check_arguments(locals(), path=a_text)
    shared = os.environ.get("PRUNUS_SHARED", "../shared")
    path = re.sub(r"\$(PRUNUS_SHARED\b|\{PRUNUS_SHARED\})", lambda _: shared, path)
    return os.path.expanduser(os.path.expandvars(path))


def check(raw: dict[str, Any], lines: Mapping[text.Key, int], name: str) -> Recipe:
    """The checked recipe of a dict as `prunus.recipes.text.parse` gives it.

    Args: raw, lines: the dict, and the line of every key; name: what errors call the recipe.

    Raises: `InputError` that lists everything that is wrong, with lines.
    """
    check_arguments(locals(), raw=a_mapping, lines=SOME_LINES)
    _well_formed(raw, lines, name)
    problems = [f"{at(lines, (key,))}{key}: {why}" for key, why in misplaced(raw)]
    try:
        recipe = Recipe.model_validate(resolve(raw))
    except ValidationError as error:
        problems += told(error.errors(), raw, lines)
    if problems:
        count = "1 error" if len(problems) == 1 else f"{len(problems)} errors"
        raise InputError("\n  ".join([f"{name} has {count}:", *problems]))
    return recipe


def _well_formed(raw: Mapping[str, Any], lines: Mapping[text.Key, int], name: str) -> None:
    wrong = malformed(raw, lines)
    if wrong is not None:
        raise InputError(f"{name} has 1 error:\n  {wrong}")


def dump(recipe: Recipe) -> dict[str, Any]:
    """The recipe with every default written out, as plain data: what ``recipe.yaml`` of a run holds."""
    check_arguments(locals(), recipe=instance("a prunus.recipes.Recipe", Recipe))
    return recipe.model_dump(mode="json")
