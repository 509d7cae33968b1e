"""Integers that a module holds, by place: ``num_heads``, ``normalized_shape[0]``, ``config.hidden_size``."""

from __future__ import annotations

import re
from typing import Any

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
