"""Integers that a module holds, by place: ``num_heads``, ``normalized_shape[0]``, ``config.hidden_size``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from prunus.core.undo import keep_item

_STEP = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")


def get_place(holder: Any, place: str) -> Any:
    """The value at `place`; raises `AttributeError`, `IndexError` or `TypeError` when there is none.

    >>> from torch import nn
    >>> get_place(nn.LayerNorm(8), "normalized_shape[0]")
    8
    """
    for name, index in _STEP.findall(place):
        holder = getattr(holder, name) if name else holder[int(index)]
    return holder


def set_place(holder: Any, place: str, value: Any) -> None:
    """Put `value` at `place`; a tuple is replaced by another one.

    >>> from torch import nn
    >>> norm = nn.LayerNorm(8)
    >>> set_place(norm, "normalized_shape[0]", 6)
    >>> norm.normalized_shape
    (6,)
    """
    *way, (name, index) = _STEP.findall(place)
    if not index:
        for step, number in way:
            holder = getattr(holder, step) if step else holder[int(number)]
        keep_item(vars(holder), name)
        vars(holder)[name] = value
        return
    outer = place[: -len(index) - 2]
    items = get_place(holder, outer)
    if isinstance(items, list):
        keep_item(items, int(index))
        items[int(index)] = value
    else:
        set_place(holder, outer, tuple(value if i == int(index) else v for i, v in enumerate(items)))


def integers(module: nn.Module, seen: set[int] | None = None) -> Iterator[tuple[str, int]]:
    """Every place of an integer that a module holds: what a cut may edit, and nothing else.

    Attributes of the module's own, items of its tuples and lists, and entries of its configuration objects (each object
    once for the same set `seen`); none whose name begins with an underscore, no bool.

    >>> dict(integers(nn.LayerNorm(8)))
    {'normalized_shape[0]': 8}
    """
    seen = set() if seen is None else seen
    for attribute, value in vars(module).items():
        if attribute.startswith("_") or isinstance(value, (nn.Module, Tensor)):
            continue
        if type(value) is int:
            yield attribute, value
        elif type(value) in (tuple, list):
            yield from ((f"{attribute}[{i}]", v) for i, v in enumerate(value) if type(v) is int)
        elif _configuration(value) and id(value) not in seen:  # many modules may share one
            seen.add(id(value))
            inner = [(k, v) for k, v in vars(value).items() if type(v) is int and not k.startswith("_")]
            yield from ((f"{attribute}.{k}", v) for k, v in inner)


def _configuration(value: Any) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, (type, ModuleType)) and not callable(value)
