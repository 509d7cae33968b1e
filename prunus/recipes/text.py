"""Recipes as YAML text: values with the line they stand on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from prunus.core import FileError, InputError

Key = tuple[str | int, ...]


MOST_TEXT, MOST_NODES, MOST_DEPTH = 1_000_000, 20_000, 24  # of a recipe; the longest one that comes along has 300 nodes
MOST_DIGITS = 100  # of a number: reading a long one to the base of 60, and writing any, takes the square of its length
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Loader(yaml.SafeLoader):
    """YAML where ``1e-3`` is a number, as a reader expects, and where a small file stays small: no aliases, bounds."""

    nodes = depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refused(event, "recipes know no anchors and aliases (&, *): write the value out")
        if self.nodes > MOST_NODES or self.depth > MOST_DEPTH:
            what = f"{MOST_NODES} values" if self.nodes > MOST_NODES else f"{MOST_DEPTH} levels"
            raise _refused(event, f"there are more than {what} in it")
        try:
            node = super().compose_node(parent, index)
        finally:
            self.depth -= 1
        if isinstance(node, yaml.ScalarNode) and node.tag in NUMBERS and len(node.value) > MOST_DIGITS:
            raise _refused(event, f"a number has at most {MOST_DIGITS} characters")
        return node

    yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _refused(event: Any, why: str) -> yaml.MarkedYAMLError:
    return yaml.composer.ComposerError(None, None, why, event.start_mark)


def value(text: str) -> Any:
    """One value as it would be read in a recipe.

    >>> value("1e-3"), value("[1, 2]"), value("prunus:resnet20")
    (0.001, [1, 2], 'prunus:resnet20')
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def parse(text: str, name: str) -> tuple[dict[str, Any], dict[Key, int]]:
    """The recipe in `text` as a dict, and the line of every key; `name` is what errors call it.

    Raises: `FileError` when it is not YAML, or not a mapping; `InputError` when a key is given twice.
    """
    if len(text) > MOST_TEXT:
        raise FileError(f"{name} has {len(text):,} characters; a recipe has at most {MOST_TEXT:,}.")
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:  # characters that YAML has not
        raise FileError(f"{name} is not YAML: {error}.") from None
    try:
        root = loader.get_single_node()
        data = loader.construct_document(root) if root is not None else None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise FileError(f"{name}, line {line}: this is not YAML: {error.problem}.") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(f"{name} is not YAML: {error}.") from None
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        raise FileError(f"{name} is not a recipe: expected keys such as model: and stages:.")
    lines: dict[Key, int] = {}
    _note_lines(root, (), lines, name)
    return data, lines


def read(path: Path) -> tuple[dict[str, Any], dict[Key, int]]:
    """`parse` of a file; raises `FileError` when it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MOST_TEXT + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"cannot read the recipe '{path}': {error}.") from None
    return parse(text, str(path))


def write(data: dict[str, Any]) -> str:
    """A recipe as YAML text, keys in the order given."""
    return yaml.safe_dump(data, sort_keys=False, width=120, allow_unicode=True)


def _note_lines(node: Any, at: Key, lines: dict[Key, int], name: str) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            place = (*at, str(key.value))
            if place in lines:
                raise InputError(
                    f"{name}, line {key.start_mark.line + 1}: '{key.value}' is given a second time "
                    f"(first in line {lines[place]}); keep one."
                )
            lines[place] = key.start_mark.line + 1
            _note_lines(child, place, lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for i, child in enumerate(node.value):
            lines[(*at, i)] = child.start_mark.line + 1
            _note_lines(child, (*at, i), lines, name)
