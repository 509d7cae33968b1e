"""How a network's outputs are put together, as data: tuples, lists and dictionaries of them, and plain constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Structure = dict[str, Any]
ONE: Structure = {"leaf": 0}
DEPTH = 20


def described(spec: Any, leaves: Sequence[Any]) -> Structure:
    """The structure of a `TreeSpec` of torch whose `leaves` are structures.  Other containers become tuples.

    >>> from torch.utils._pytree import tree_flatten
    >>> leaves, spec = tree_flatten({"a": 1, "b": (2, None)})
    >>> described(spec, [{"leaf": 0}, {"leaf": 1}, {"value": None}])
    {'dict': [['a', {'leaf': 0}], ['b', {'tuple': [{'leaf': 1}, {'value': None}]}]]}
    """
    left = iter(leaves)

    def walk(part: Any) -> Structure:
        if part.is_leaf():
            return dict(next(left))
        inner = [walk(child) for child in part.children()]
        if part.type is dict and all(isinstance(key, (str, int)) for key in part.context):
            return {"dict": [[key, one] for key, one in zip(part.context, inner)]}
        return {"list" if part.type is list else "tuple": inner}

    return walk(spec)


def built(structure: Structure, values: Sequence[Any]) -> Any:
    """The outputs in their structure.

    >>> built({"tuple": [{"leaf": 1}, {"list": [{"leaf": 0}]}, {"value": 3}]}, ["a", "b"])
    ('b', ['a'], 3)
    """
    ((kind, held),) = structure.items()
    if kind == "leaf":
        return values[held]
    if kind == "value":
        return held
    if kind == "dict":
        return {key: built(one, values) for key, one in held}
    inner = [built(one, values) for one in held]
    return inner if kind == "list" else tuple(inner)


def is_structure(structure: Any, many: int, depth: int = DEPTH) -> bool:
    """Whether data is a structure of at most so many outputs."""
    if not depth or not isinstance(structure, dict) or len(structure) != 1:
        return False
    ((kind, held),) = structure.items()
    if kind == "leaf":
        return type(held) is int and 0 <= held < many
    if kind == "value":
        return held is None or isinstance(held, (bool, int, float, str))
    if kind not in ("dict", "list", "tuple") or not isinstance(held, list):
        return False
    if kind == "dict":
        pairs = all(isinstance(p, list) and len(p) == 2 and isinstance(p[0], (str, int)) for p in held)
        return pairs and all(is_structure(one, many, depth - 1) for _, one in held)
    return all(is_structure(one, many, depth - 1) for one in held)
