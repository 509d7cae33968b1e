"""JSON that somebody else wrote: taken apart field by field, every one with its type and its bounds.

Everything here raises `ValueError` with what was expected; callers turn it into a `FileError` that names the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

LONG = 1 << 26  # characters of text
MOST = 1 << 40  # elements of a tensor
HIGHEST = 1 << 53


def parsed(text: str) -> Any:
    """The data in JSON text; raises `ValueError` for what is no JSON, names a field twice, or is of absurd size.

    >>> parsed('{"a": [1, 2]}')
    {'a': [1, 2]}
    >>> parsed("[" * 100_000)
    Traceback (most recent call last):
    ValueError: it is nested too deeply
    """
    if len(text) > LONG:
        raise ValueError(f"it is {len(text)} characters long, at most {LONG} may be")
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it names a field twice")
    return found


def whole(value: Any, low: int = 0, high: int = HIGHEST) -> int:
    """An integer within bounds; a bool, a float or a text is none.

    >>> whole(3), whole(-1, low=-1)
    (3, -1)
    """
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"expected a whole number from {low} to {high}, given {shown(value)}")
    return value


def text(value: Any, among: Collection[str] = (), longest: int = 1000) -> str:
    """A text, one `among` some where these are given."""
    if type(value) is not str or len(value) > longest or (among and value not in among):
        raise ValueError(f"expected {' or '.join(sorted(among)) or 'a text'}, given {shown(value)}")
    return value


def items(value: Any) -> list[Any]:
    """A list."""
    if type(value) is not list:
        raise ValueError(f"expected a list, given {shown(value)}")
    return value


def entries(value: Any) -> dict[str, Any]:
    """An object."""
    if type(value) is not dict:
        raise ValueError(f"expected an object, given {shown(value)}")
    return value


def record(value: Any, needed: Collection[str], others: Collection[str] = ()) -> dict[str, Any]:
    """An object with all the fields `needed`, and none but these and `others`.

    >>> record({"a": 1}, ["a"], ["b"])
    {'a': 1}
    """
    found = entries(value)
    if missing := sorted(set(needed) - set(found)):
        raise ValueError(f"the field '{missing[0]}' is missing in {shown(value)}")
    if odd := sorted(set(found) - set(needed) - set(others)):
        raise ValueError(f"{shown(odd[0])} is no field of it")
    return found


def shape(value: Any) -> tuple[int, ...]:
    """The sizes of a tensor, of no more elements than a machine has room for."""
    sizes = tuple(whole(n, high=MOST) for n in items(value))
    if len(sizes) > 25 or math.prod(sizes) > MOST:
        raise ValueError(f"{shown(value)} is no shape of a tensor")
    return sizes


def indices(value: Any, below: int) -> tuple[int, ...]:
    """Whole numbers below a bound, in order, none twice.

    >>> indices([0, 2], 3)
    (0, 2)
    """
    found = items(value)
    for a, b in zip([-1, *found], found):
        if type(b) is not int or b <= a:
            raise ValueError(f"expected whole numbers in order, none twice, given {shown(b)} after {shown(a)}")
    if found and found[-1] >= below:
        raise ValueError(f"{found[-1]} is outside of the {below} that there are")
    return tuple(found)


def shown(value: Any) -> str:
    """A value as a message tells it: shortly, whatever it is."""
    if isinstance(value, (list, Mapping)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if type(value) is int and abs(value) > 1 << 64:
        return "a number of more than 64 bits"
    return repr(value)[:60]


def shortly(error: BaseException) -> str:
    """What went wrong, in a line of bounded length."""
    return f"{type(error).__name__}: {str(error)[:300]}"
