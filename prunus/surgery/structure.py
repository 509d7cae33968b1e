"""Inputs and outputs in any nesting: described once, taken apart, and built again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import SUPPORTED_NODES

from prunus.core import InputError
from prunus.core.inputs import is_cache
from prunus.core.nested import parts_of
from prunus.tracing.tracer import Ref

KINDS = ("list", "tuple", "dict", "fields", "object", "other")


@dataclass(frozen=True)
class Node:
    """A container: its kind, its keys (of ``dict``, ``fields``, ``object``), what it holds, the class to build again.

    `cls` is known in the process that recorded; a description read from a file has none and gives plain lists, tuples
    and dictionaries.
    """

    kind: str
    keys: tuple[Any, ...] = ()
    items: tuple[Any, ...] = ()
    cls: Any = None


def describe(value: Any, leaf: Callable[[Any], Any], above: tuple[int, ...] = ()) -> Any:
    """Containers and objects in any nesting, with `leaf` applied to the rest; `above` are the ids of what holds it.

    >>> describe({"a": 1, "b": [2]}, str).items
    ('1', Node(kind='list', keys=(), items=('2',), cls=<class 'list'>))
    """
    kind, above = type(value), (*above, id(value))
    if isinstance(value, Tensor) or is_cache(value):
        return leaf(value)

    def each(values: Iterable[Any]) -> tuple[Any, ...]:
        return tuple(describe(None if id(v) in above else v, leaf, above) for v in values)  # no way in circles

    if dataclasses.is_dataclass(value) and all(f.init for f in dataclasses.fields(value)) and kind is not type:
        keys = tuple(f.name for f in dataclasses.fields(value))
        return Node("fields", keys, each(getattr(value, k) for k in keys), kind)
    if isinstance(value, Mapping):
        return Node("dict", tuple(value), each(value.values()), kind)
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple
        return Node("tuple", value._fields, each(value), kind)
    if isinstance(value, (list, tuple)):
        return Node("list" if isinstance(value, list) else "tuple", (), each(value), kind)
    if kind in SUPPORTED_NODES:
        children, context = SUPPORTED_NODES[kind].flatten_fn(value)
        build = SUPPORTED_NODES[kind].unflatten_fn
        return Node("other", (), each(children), lambda parts: build(parts, context))
    parts = parts_of(value)
    if parts and all(part.kind == "attribute" for part in parts):
        return Node("object", tuple(part.key for part in parts), each(part.value for part in parts), kind)
    return leaf(value)


def rebuild(template: Any, leaf: Callable[[Any], Any]) -> Any:
    """The structure again, with `leaf` applied to every leaf of its description.

    >>> rebuild(describe({"a": (1, [2])}, str), int)
    {'a': (1, [2])}
    """
    if not isinstance(template, Node):
        return leaf(template)
    items = [rebuild(v, leaf) for v in template.items]
    if template.kind == "dict":
        return dict(zip(template.keys, items))
    if template.kind in ("fields", "object"):
        named = dict(zip(template.keys, items))
        if template.cls is None or template.kind == "fields":
            return named if template.cls is None else template.cls(**named)
        new = template.cls.__new__(template.cls)
        for key, item in named.items():
            object.__setattr__(new, key, item)
        return new
    if template.cls is torch.Size:
        return torch.Size(items)
    if template.cls is not None and (template.kind == "other" or template.keys):
        return template.cls(items) if template.kind == "other" else template.cls(*items)
    return tuple(items) if template.kind == "tuple" else items


def take_apart(template: Any, value: Any, where: str, put: Callable[[int, Tensor], None]) -> None:
    """Hand every tensor of `value` to `put` with its number in `template`.

    Raises: `InputError` naming the place when the structure, or a value that is no tensor, is not as described.
    """
    if isinstance(template, Node):
        for key, item, part in _parts(template, value, where):
            take_apart(item, part, f"{where}{key}", put)
    elif isinstance(template, Ref):
        if not isinstance(value, Tensor):
            raise InputError(f"the input {where} should be a tensor; given {type(value).__name__}.")
        put(template.number, value)
    elif isinstance(value, Tensor) or value != template:
        shown = "a tensor" if isinstance(value, Tensor) else repr(value)
        raise InputError(
            f"the input {where} was {template!r} when the network was recorded, and the recording holds for that "
            f"alone; given {shown}. Rewrite the network again with the inputs it should take."
        )


def _parts(template: Node, value: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """Key, description and part of everything a container holds."""
    if template.kind in ("fields", "object"):
        values = [value[k] if isinstance(value, Mapping) else getattr(value, k, None) for k in template.keys]
        return zip([f".{k}" for k in template.keys], template.items, values)
    if template.kind == "dict":
        if not isinstance(value, Mapping) or set(value) != set(template.keys):
            given = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
            raise InputError(f"the input {where} should have the keys {list(template.keys)}; given {given}.")
        return zip([f"[{k!r}]" for k in template.keys], template.items, [value[k] for k in template.keys])
    if template.kind == "other":
        value = SUPPORTED_NODES[type(value)].flatten_fn(value)[0] if type(value) in SUPPORTED_NODES else value
    if not isinstance(value, (list, tuple)) or len(value) != len(template.items):
        given = f"{len(value)} of them" if isinstance(value, (list, tuple)) else type(value).__name__
        raise InputError(f"the input {where} should be a {template.kind} of {len(template.items)}; given {given}.")
    return zip([f"[{i}]" for i in range(len(value))], template.items, value)


def by_name(order: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Positional and keyword inputs by the names of forward's parameters.

    >>> by_name(("x", "mask"), (1,), {"mask": 2})
    {'x': 1, 'mask': 2}
    """
    named = {order[i] if i < len(order) else f"*{i}": value for i, value in enumerate(args)}
    if twice := sorted(set(named) & set(kwargs)):
        raise InputError(f"the input '{twice[0]}' was given twice, by position and by name.")
    return {**named, **kwargs}
