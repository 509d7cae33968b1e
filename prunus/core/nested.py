"""The tensors inside whatever user code hands around: containers and objects in any nesting, walked in one place."""

from __future__ import annotations

import copy
import enum
import gc
import logging
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import SUPPORTED_NODES

from prunus.core.errors import TraceError

LARGEST = 2_000_000  # parts of one structure
POINTER = tuple.__itemsize__
OWN = (dict, list, tuple, deque, types.MappingProxyType)  # containers whose content is known, without their attributes
LAZY = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)  # what they compute is still to come
CALLABLE = (types.FunctionType, types.MethodType, types.BuiltinMethodType, partial)
PLAIN = (
    *(int, float, complex, str, bytes, bytearray, type(None), type, range, enum.Enum, types.ModuleType, nn.Module),
    *(torch.Size, torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Generator, np.generic, np.dtype),
    *(torch.finfo, torch.iinfo, logging.Logger, weakref.ref, property, types.GenericAlias),
)


class Part(NamedTuple):
    """What a container or an object holds at one place; `hidden` parts can be seen, but not what becomes of them."""

    where: str
    value: Any
    kind: str = "item"  # or "attribute", or "hidden"
    key: Any = None


def parts_of(value: Any) -> list[Part]:
    """What a value holds directly: items, attributes (also in slots), or, hidden, what a callable or iterator keeps.

    >>> [part.where for part in parts_of({"a": 1})], [part.key for part in parts_of(types.SimpleNamespace(b=2))]
    (["['a']"], ['b'])
    """
    kind = type(value)
    if isinstance(value, (Tensor, *PLAIN)):
        return []
    if isinstance(value, np.ndarray):
        return [Part("[...]", v, "hidden") for v in value.flat] if value.dtype == object else []
    if kind in SUPPORTED_NODES and kind not in OWN:
        return [Part(f"[{i}]", v, "node") for i, v in enumerate(SUPPORTED_NODES[kind].flatten_fn(value)[0])]
    if isinstance(value, (Mapping, *OWN)):
        return [*_items(value), *_attributes(value)]
    if isinstance(value, CALLABLE):
        return [Part("()", v, "hidden") for v in _kept(value)]
    found = _attributes(value)
    if not _whole(kind):
        own = getattr(value, "__dict__", None)
        found += [Part("", v, "hidden") for v in gc.get_referents(value) if v is not own and not isinstance(v, PLAIN)]
    return found


def _items(value: Any) -> Iterator[Part]:
    if isinstance(value, (dict, types.MappingProxyType)):
        return (Part(f"[{k!r}]", v, key=k) for k, v in value.items())
    if isinstance(value, Mapping):
        return iter(())  # what a class of the user's computes it from is in its attributes
    names = getattr(value, "_fields", None) if isinstance(value, tuple) else None
    return (Part(f".{names[i]}" if names else f"[{i}]", v, key=i) for i, v in enumerate(value))


def _attributes(value: Any) -> list[Part]:
    """The instance's dictionary and all slots, also inherited and private ones."""
    kind, found = type(value), {}
    for cls in kind.__mro__:
        for name in _slots(cls):
            try:
                found[name] = cls.__dict__[name].__get__(value, kind)
            except (AttributeError, KeyError):  # not set
                continue
    if kind.__dictoffset__:
        found |= object.__getattribute__(value, "__dict__")
    return [Part(f".{name}", v, "attribute", name) for name, v in found.items()]


def _slots(cls: type) -> list[str]:
    declared = cls.__dict__.get("__slots__", ())
    names = [declared] if isinstance(declared, str) else list(declared)
    private = f"_{cls.__name__.lstrip('_')}"
    named = [f"{private}{n}" if n.startswith("__") and not n.endswith("__") else n for n in names]
    return [n for n in named if n not in ("__dict__", "__weakref__")]


def _whole(kind: type) -> bool:
    """Whether attributes are all there is to a class: no state in C beside its dictionary and slots."""
    slots = sum(len(_slots(cls)) for cls in kind.__mro__)
    known = object.__basicsize__ + POINTER * (slots + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0))
    return kind.__basicsize__ <= known


def _kept(function: Any) -> list[Any]:
    """What a callable carries with it."""
    if isinstance(function, partial):
        return [function.func, *function.args, *function.keywords.values()]
    if not isinstance(function, types.FunctionType):
        return [getattr(function, "__self__", None), getattr(function, "__func__", None)]
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # not set yet
            continue
    return [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *vars(function).values()]


def tensors_in(value: Any, what: str = "", skip: Callable[[Any], bool] = lambda value: False) -> list[Tensor]:
    """Every tensor inside `value`, in a fixed order, arrays of numpy as tensors; modules are not entered.

    Args:
        what: the name of `value` in messages; empty: what cannot be walked, and arrays, are passed over.
        skip: parts that are not looked into.

    Raises: `TraceError` where tensors may be that cannot be reached: an iterator, a set, a function that keeps some.

    >>> tensors_in({"a": types.SimpleNamespace(b=[torch.ones(1)])})
    [tensor([1.])]
    >>> tensors_in(iter([torch.ones(1)]), "the output")
    Traceback (most recent call last):
    prunus.core.errors.TraceError: the output is a list_iterator, ...
    """
    found: list[Tensor] = []
    seen: dict[int, Any] = {}  # holds on to what is seen, so that no other gets its number
    stack: list[tuple[Any, tuple[Any, ...], Any]] = [(value, (), None)]  # value, the way to it, what hides it
    while stack:
        value, way, hider = stack.pop()
        opaque = isinstance(value, LAZY) or _foreign(value)
        if hider is not None and (opaque or isinstance(value, Tensor) or _computes(value)):
            raise _unreachable(hider[0], hider[1], what)
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
            found += [torch.from_numpy(np.array(value))] if what and hider is None else []
        elif opaque and what:
            raise _unreachable(value, way, what)
        elif not opaque and id(value) not in seen and not isinstance(value, PLAIN) and not skip(value):
            seen[id(value)] = value
            if len(seen) > LARGEST:
                raise TraceError(f"{what or 'a value'} holds more than {LARGEST:,} parts. {HINT}")
            for where, part, kind, _ in reversed(parts_of(value)):
                if kind != "hidden" or what:
                    stack.append((part, (way, where), (value, way) if kind == "hidden" and hider is None else hider))
    return found


HINT = "Return tuples, dictionaries or objects with attributes, or name the tensors: outputs=lambda returned: [...]."


def _computes(value: Any) -> bool:
    """Whether a callable that keeps this may still compute with it."""
    return isinstance(value, nn.Module) and any(True for _ in value.parameters())


def _foreign(value: Any) -> bool:
    """Whether a value is of a class in C that the garbage collector knows nothing of, from a library."""
    kind = type(value)
    if isinstance(value, (Tensor, np.ndarray, Mapping, *OWN, *CALLABLE, *PLAIN)) or _whole(kind):
        return False
    base = next((cls for cls in reversed(kind.__mro__) if not _whole(cls)), kind)
    return base.__module__.partition(".")[0] not in {*sys.stdlib_module_names, "numpy"}


def _unreachable(value: Any, way: tuple[Any, ...], what: str) -> TraceError:
    steps = []
    while way:
        way, step = way
        steps.append(step)
    where = "".join(reversed(steps))
    return TraceError(
        f"{what}{f' holds at {where}' if where else ' is'} a {type(value).__name__}, and what tensors it has, or will "
        f"compute, cannot be followed. {HINT}"
    )


def with_tensors_changed(value: Any, change: Callable[[Tensor], Tensor], known: dict[int, Any] | None = None) -> Any:
    """The same structure with `change` applied to every tensor; what holds none stays the same object.

    >>> with_tensors_changed(types.SimpleNamespace(a=(torch.ones(1), 2)), lambda t: t + 1)
    namespace(a=(tensor([2.]), 2))
    """
    known = {} if known is None else known
    if isinstance(value, Tensor):
        return change(value)
    if id(value) in known or not tensors_in(value):
        return known.get(id(value), value)
    parts, kind = [part for part in parts_of(value) if part.kind != "hidden"], type(value)
    proxy, whole = isinstance(value, types.MappingProxyType), isinstance(value, tuple) or parts[0].kind == "node"
    out = known[id(value)] = value if whole else dict(value) if proxy else copy.copy(value)  # may lead back to itself
    new = [with_tensors_changed(part.value, change, known) for part in parts]
    if parts[0].kind == "node":
        out = SUPPORTED_NODES[kind].unflatten_fn(new, SUPPORTED_NODES[kind].flatten_fn(value)[1])
    elif isinstance(value, tuple):
        out = kind(*new[: len(value)]) if hasattr(value, "_fields") else kind(new[: len(value)])
    for part, v in zip(parts, new):
        if part.kind == "item" and not whole:
            out[part.key] = v
        elif part.kind == "attribute":
            object.__setattr__(out, part.key, v)
    known[id(value)] = types.MappingProxyType(out) if proxy else out
    return known[id(value)]
