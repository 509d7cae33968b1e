"""Where do the integers of a forward come from?  Ints that remember the attributes and sizes they were computed from.

While a forward is recorded, integer attributes of modules and sizes of tensors are `TracedInt`: they behave as ints,
and arithmetic on them keeps the expression.  So the tracer learns that an argument of ``view`` is ``C // num_heads``,
and which attribute has to change, or which counts have to stay in proportion, when ``C`` is cut.
"""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunus.core.places import integers
from prunus.core.process import Shared

NUMBERS = (int, float)


@dataclass(frozen=True, eq=False)
class Attribute:
    """An integer attribute of a module, or an integer in a tuple, list or configuration object that it holds."""

    module: str
    place: str  # "num_heads", "normalized_shape[0]", "config.hidden_size"
    value: int


@dataclass(frozen=True, eq=False)
class Size:
    """The size of a labelled dimension."""

    dim: Any
    value: int


@dataclass(frozen=True, eq=False)
class Computed:
    """An operation on expressions."""

    name: str
    args: tuple[Any, ...]


Expression = int | float | Attribute | Size | Computed


class _Watch(threading.local):
    """Comparisons of traced integers while a forward was recorded: what came out equal, and what is not one."""

    equal: list[tuple[Expression, Expression]] | None = None
    several: list[Expression] = []


Watch = _Watch()


def expression(value: Any) -> Expression:
    """What a number was computed from; itself for a plain one."""
    return getattr(value, "expression", value)


def evaluated(expression: Expression) -> Any:
    """The value that an expression had while forward ran."""
    if isinstance(expression, Computed):
        values = [evaluated(arg) for arg in expression.args]
        return getattr(operator, expression.name)(*values)
    return expression.value if isinstance(expression, (Attribute, Size)) else expression


def plain(value: Any) -> Any:
    """A number that remembers nothing."""
    if isinstance(value, TracedInt):
        return int(value)
    return float(value) if isinstance(value, TracedFloat) else value


def traced(value: Any, expression: Expression) -> Any:
    """`value` as a number that remembers `expression`."""
    kind = TracedInt if type(value) is int else TracedFloat if type(value) is float else None
    if kind is None:
        return value
    out = kind(value)
    out.expression = expression
    return out


def _binary(name: str, swapped: bool = False) -> Callable[[Any, Any], Any]:
    function = getattr(operator, name)

    def method(self: Any, other: Any) -> Any:
        if not isinstance(other, NUMBERS) or isinstance(other, bool):
            return NotImplemented
        a, b = (other, self) if swapped else (self, other)
        return traced(function(plain(a), plain(b)), Computed(name, (expression(a), expression(b))))

    return method


def _unary(name: str, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def method(self: Any) -> Any:
        return traced(function(plain(self)), Computed(name, (expression(self),)))

    return method


def _equal(self: Any, other: Any) -> Any:
    if not isinstance(other, NUMBERS):
        return NotImplemented
    same = plain(self) == plain(other)
    if Watch.equal is not None and not isinstance(other, bool):
        if same:
            Watch.equal.append((expression(self), expression(other)))
        elif type(other) is int and other == 1:
            Watch.several.append(expression(self))
    return same


def _unequal(self: Any, other: Any) -> Any:
    same = _equal(self, other)
    return same if same is NotImplemented else not same


class TracedInt(int):
    """An int that remembers what it was computed from."""

    expression: Expression
    __eq__, __ne__, __hash__ = _equal, _unequal, int.__hash__


class TracedFloat(float):
    """A float that remembers which integers it was computed from."""

    expression: Expression
    __eq__, __ne__, __hash__ = _equal, _unequal, float.__hash__


for _kind in (TracedInt, TracedFloat):
    for _name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow"):
        setattr(_kind, f"__{_name}__", _binary(_name))
        setattr(_kind, f"__r{_name}__", _binary(_name, swapped=True))
    setattr(_kind, "__neg__", _unary("neg", operator.neg))  # noqa: B010


def leaves(value: Any) -> Iterator[Any]:
    """Every number in nested tuples, lists, dictionaries and slices, in order (booleans are none)."""
    if isinstance(value, NUMBERS):
        if not isinstance(value, bool):
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, slice):
        yield from leaves((value.start, value.stop, value.step))


def stripped(value: Any) -> Any:
    """The same nesting with plain numbers."""
    if isinstance(value, (TracedInt, TracedFloat)):
        return plain(value)
    if isinstance(value, torch.Size):
        return torch.Size(plain(v) for v in value)
    if type(value) in (tuple, list):
        return type(value)(stripped(v) for v in value)
    if isinstance(value, slice):
        return slice(stripped(value.start), stripped(value.stop), stripped(value.step))
    return {k: stripped(v) for k, v in value.items()} if type(value) is dict else value


@contextmanager
def traced_attributes(model: nn.Module) -> Iterator[None]:
    """While this is open, integer attributes of all modules remember where they come from."""
    changed: list[tuple[Any, str, Any, Any]] = []  # who holds it, under which name, ours, and what was there
    seen: set[int] = set()
    try:
        for name, module in model.named_modules():
            attributes = dict.fromkeys(place.partition("[")[0] for place, _ in integers(module, seen))
            for place in attributes:  # "num_heads", "normalized_shape", "config.hidden_size"
                outer, _, attribute = place.rpartition(".")
                holder = vars(vars(module)[outer] if outer else module)
                value = holder[attribute]
                ours = _traced(value, name, place)
                changed.append((holder, attribute, ours, value))
                if type(value) is list:
                    value[:] = ours
                else:
                    holder[attribute] = ours
        yield
    finally:
        for holder, attribute, ours, value in changed:
            now = holder.get(attribute)
            if type(value) is list:
                value[:] = stripped(value)
            elif now is ours:
                holder[attribute] = value
            elif type(now) in (TracedInt, tuple):  # forward has put something else there
                holder[attribute] = stripped(now)


def _traced(value: Any, module: str, place: str) -> Any:
    """The integer, or the integers in a tuple or list, with the place where the model holds them."""
    if type(value) is int:
        return traced(value, Attribute(module, place, value))
    inside = ((f"{place}[{i}]", v) for i, v in enumerate(value))
    return type(value)(traced(v, Attribute(module, at, v)) if type(v) is int else v for at, v in inside)


def _trace_roots(stack: ExitStack) -> None:
    original = math.sqrt

    def sqrt(x: Any) -> Any:
        value = original(x)
        return traced(value, Computed("pow", (expression(x), 0.5))) if x is not plain(x) else value

    stack.callback(setattr, math, "sqrt", original)
    math.sqrt = sqrt


def _open_functions(stack: ExitStack) -> None:
    """In a thread that records; functions of others are as ever."""
    module: Any = torch.nn.functional
    for name in ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic"):
        original = getattr(module, name)
        stack.callback(setattr, module, name, original)
        setattr(module, name, lambda *args, original=original: Watch.equal is None and original(*args))


traced_roots = Shared(_trace_roots)  # while this is open, ``math.sqrt`` keeps the expression of a traced number
open_functions = Shared(_open_functions)  # torch's own Python functions run their bodies under a function mode
