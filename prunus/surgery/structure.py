"""Inputs and outputs in any nesting: described once, taken apart, and built again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import SUPPORTED_NODES

from prunus.core import InputError
from prunus.tracing.tracer import Ref

KINDS = ("list", "tuple", "dict", "fields", "other")


@dataclass(frozen=True)
class Node:
    """A container: its kind, its keys (for ``dict`` and ``fields``), what it holds, and the class to build again.

    `cls` is known in the process that recorded; a description read from a file has none and gives plain lists, tuples
    and dictionaries.
    """

    kind: str
    keys: tuple[Any, ...] = ()
    items: tuple[Any, ...] = ()
    cls: Any = None


def describe(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """Tuples, lists, dictionaries, dataclasses and pytree nodes in any nesting, with `leaf` applied to the rest.

    >>> describe({"a": 1, "b": [2]}, str).items
    ('1', Node(kind='list', keys=(), items=('2',), cls=<class 'list'>))
    """
    kind = type(value)
    if isinstance(value, Tensor):
        return leaf(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        keys = tuple(f.name for f in dataclasses.fields(value) if f.init)
        return Node("fields", keys, tuple(describe(getattr(value, k), leaf) for k in keys), kind)
    if isinstance(value, Mapping):
        return Node("dict", tuple(value), tuple(describe(v, leaf) for v in value.values()), kind)
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple
        return Node("tuple", value._fields, tuple(describe(v, leaf) for v in value), kind)
    if isinstance(value, (list, tuple)):
        name = "list" if isinstance(value, list) else "tuple"
        return Node(name, (), tuple(describe(v, leaf) for v in value), kind)
    if kind in SUPPORTED_NODES:
        children, context = SUPPORTED_NODES[kind].flatten_fn(value)
        build = SUPPORTED_NODES[kind].unflatten_fn
        items = tuple(describe(v, leaf) for v in children)
        return Node("other", (), items, lambda parts: build(parts, context))
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
    if template.kind == "fields":
        named = dict(zip(template.keys, items))
        return named if template.cls is None else template.cls(**named)
    if template.cls is not None and (template.kind == "other" or template.keys):
        return template.cls(items) if template.kind == "other" else template.cls(*items)
    return tuple(items) if template.kind == "tuple" else items


def leaves(template: Any) -> Iterator[Any]:
    """Every leaf of a description, in order."""
    if isinstance(template, Node):
        for item in template.items:
            yield from leaves(item)
    else:
        yield template


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
    if template.kind == "fields":
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
