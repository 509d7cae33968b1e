"""Nasty changes of JSON data and of bytes, all drawn from one random generator."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

NUMBERS = (0, 1, -1, 2, 3, 7, 255, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, 2**63 - 1, -(2**63), 2**64, 10**30)
ODD = (0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf"), True, False, None)
TEXTS = (
    "",
    "_",
    "__class__",
    "a.b.c",
    "../x",
    "/dev/zero",
    "x" * 5000,
    "\u0000",
    "\ud800",
    "1",
    "weight",
    "training",
    "forward",
    "_forward_hooks",
    "padding_mode",
    "stride",
    "cuda",
    "meta",
    "sparse_coo",
    "quint8",
)
HOLDERS = ([], {}, [None], {"": None}, [[]], [1, 2, 3], [-1], [2**40, 2**40], {"tensor": 0}, {"batch": [2**40, 0]})

DEEP = 100_000
DEEPEST = "<something nested deeper than any parser likes>"  # `dumped` puts it there


def places(data: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside of `data`, the whole included."""
    yield way
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*way, key))


def nested(rng: random.Random, depth: int) -> Any:
    """Something very deep."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if rng.random() < 0.5 else {"items": value}
    return value


def dumped(value: Any) -> str:
    """JSON text, also of what is nested deeper than Python's own encoder goes."""
    try:
        text = json.dumps(value)
    except RecursionError:
        text = "[" * 900 + "]" * 900
    return text.replace(json.dumps(DEEPEST), "[" * DEEP + "1" + "]" * DEEP)


def nasty(rng: random.Random, old: Any, texts: Sequence[str] = ()) -> Any:
    """A value to stand for `old`; `texts` are names of the format's own (operators, say)."""
    if isinstance(old, int) and not isinstance(old, bool) and rng.random() < 0.6:
        return rng.choice((old + 1, old - 1, -old, old * 2, old * 1000, old // 2, old + 64, rng.choice(NUMBERS)))
    if isinstance(old, str) and texts and rng.random() < 0.8:
        return rng.choice(texts)
    if isinstance(old, list) and rng.random() < 0.5:
        new = copy.copy(old)
        if rng.random() < 0.3:
            rng.shuffle(new)
            return new
        return rng.choice((new * 2, new[1:], new[:-1], new[::-1], [*new, rng.choice(NUMBERS)], new * 1000))
    return rng.choice((rng.choice(NUMBERS), rng.choice(ODD), rng.choice(TEXTS), copy.deepcopy(rng.choice(HOLDERS))))


def mutated(rng: random.Random, data: Any, texts: Sequence[str] = (), prefer: Sequence[str] = ()) -> Any:
    """A copy of JSON data with one to three changes: other values, gone, twice, swapped, renamed, nested.

    Half of the changes fall below keys named in `prefer`.
    """
    data = copy.deepcopy(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        ways = [way for way in places(data) if way]
        if not ways:
            return data
        liked = [way for way in ways if any(key in prefer for key in way)]
        way = rng.choice(liked if liked and rng.random() < 0.5 else ways)
        *path, last = way
        holder = data
        for step in path:
            holder = holder[step]
        kind = rng.random()
        if kind < 0.62:
            holder[last] = nasty(rng, holder[last], texts)
        elif kind < 0.70:
            del holder[last]
        elif kind < 0.78 and isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(rng.choice(holder)))
        elif kind < 0.84 and isinstance(holder, dict):
            holder[rng.choice((*TEXTS, *map(str, holder)))] = holder.pop(last)
        elif kind < 0.96:
            other = data
            for step in rng.choice(ways):
                other = other[step]
            holder[last] = copy.deepcopy(other)
        else:
            deep = rng.choice((50, 900, DEEP))
            holder[last] = DEEPEST if deep == DEEP else nested(rng, deep)
            if deep != 50:
                return data  # too deep to walk over again
    return data


def mangled(rng: random.Random, data: bytes) -> bytes:
    """Bytes flipped, cut off, doubled or put in."""
    raw = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(raw) or 1)
        kind = rng.random()
        if kind < 0.5 and raw:
            raw[at] = rng.randrange(256)
        elif kind < 0.65:
            del raw[at:]
        elif kind < 0.8:
            raw[at:at] = raw[: rng.randrange(200)]
        elif kind < 0.9:
            del raw[at : at + rng.randrange(64)]
        else:
            raw[at : at + 8] = rng.choice((0, 2**31, 2**63, 2**64 - 1, len(raw))).to_bytes(8, "little")
    return bytes(raw)
