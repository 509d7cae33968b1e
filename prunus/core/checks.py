"""The door: every public verb looks at what it was given before it does anything.

A verb begins with ``check_arguments(locals())``.  What an argument must be follows from its name
(`prunus.core.words.WORDS`), the same in every room, so that ``seed`` or ``budget`` is one thing everywhere; a verb says
itself where a name of its own means something else: ``check_arguments(locals(), rounds=a_count)``.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from types import FrameType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from prunus.core.errors import InputError

MOST = 2**31 - 1  # a number of things
BIGGEST = 1e38  # what float32 and bfloat16 hold


@dataclass(frozen=True)
class Kind:
    """What a value must be: `expected` ends the sentence "expected ..."; `test` says whether a value is it."""

    expected: str
    test: Callable[[Any], bool]

    def holds(self, value: Any) -> bool:
        """Whether a value is of this kind; one whose own code fails when it is looked at is not."""
        try:
            return self.test(value)
        except Exception:
            return False

    def __or__(self, other: Kind) -> Kind:
        return Kind(f"{self.expected}, or {other.expected}", lambda v: self.holds(v) or other.holds(v))


def check_arguments(given: Mapping[str, Any], /, **own: Kind) -> None:
    """Raise `InputError` for the first argument in `given` (``locals()``) that is not what its name stands for.

    `own` names the arguments that mean something else in this verb.

    >>> def grow(rounds, seed=0):
    ...     check_arguments(locals(), rounds=a_positive_int)
    >>> grow(0)
    Traceback (most recent call last):
    prunus.core.errors.InputError: grow(rounds=0): expected a whole number of at least 1.
    """
    for name, expected in _refused(given, own):
        caller = sys._getframe(1)
        if given[name] is None and _none_by_default(caller, given, name):
            continue
        verb = caller.f_code.co_name
        verb = type(given["self"]).__name__ if verb == "__init__" else verb
        raise InputError(f"{verb}({name}={shown(given[name])}): expected {expected}.")


def check_fields(made: Any, /, **own: Kind) -> None:
    """The same for the fields of a dataclass, from its ``__post_init__``."""
    for name, expected in _refused(vars(made), own):
        raise InputError(f"{type(made).__name__}({name}={shown(vars(made)[name])}): expected {expected}.")


def _refused(given: Mapping[str, Any], own: Mapping[str, Kind]) -> Iterator[tuple[str, str]]:
    """The names of values that are not what they have to be, with what was expected."""
    from prunus.core.words import WORDS

    for name, value in given.items():
        kind = own.get(name) or WORDS.get(name)  # a test looks for names without a word
        if kind is not None and not kind.holds(value):
            yield name, kind.expected


def _none_by_default(caller: FrameType, given: Mapping[str, Any], name: str) -> bool:
    """Whether a verb says itself that an argument may be None: it is its default."""
    home: Any = vars(type(given["self"])) if "self" in given else caller.f_globals
    verb = home.get(caller.f_code.co_name)
    parameters = inspect.signature(verb).parameters if callable(verb) else {}
    return name in parameters and parameters[name].default is None


def shown(value: Any, most: int = 80) -> str:
    """A value in an error text: short, and of a tensor or a module only what it is.

    >>> import torch
    >>> shown(torch.zeros(2, 3)), shown("x" * 99, 12)
    ('a float32 tensor of shape (2, 3)', "'xxxxxxxx...")
    """
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if isinstance(value, nn.Module):
        return f"a {type(value).__name__} module"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of the value's own class
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else text[: most - 3] + "..."


def instance(expected: str, *types: type) -> Kind:
    """An object of one of some classes."""
    return Kind(expected, lambda v: isinstance(v, types))


def one_of(*known: str) -> Kind:
    """One of some words."""
    return Kind(f"one of {', '.join(map(repr, known))}", lambda v: isinstance(v, str) and v in known)


def optional(kind: Kind) -> Kind:
    """None, or a value of a kind."""
    return kind | Kind("None", lambda v: v is None)


def ints(least: int, most: int = MOST, expected: str = "") -> Kind:
    """Whole numbers in a range; True and False are none."""
    span = f"a whole number of at least {least}" if most == MOST else f"a whole number from {least} to {most}"
    return Kind(expected or span, lambda v: is_int(v) and least <= v <= most)


def sequence(expected: str, item: Callable[[Any], bool], *, empty: bool = True) -> Kind:
    """A list, tuple or other collection that can be gone through again, of items that hold."""
    return Kind(expected, lambda v: _collection(v) and (empty or len(v) > 0) and all(map(item, v)))


def state_with(**types: Any) -> Kind:
    """What a ``state_dict()`` returned: a dictionary with these entries, of these types."""
    return Kind(
        f"a dictionary, as state_dict() returned it, with {', '.join(types)}",
        lambda v: isinstance(v, Mapping) and all(isinstance(v.get(name), kind) for name, kind in types.items()),
    )


def _collection(value: Any) -> bool:
    return not isinstance(value, (str, bytes, Mapping, Tensor, nn.Module)) and hasattr(value, "__len__")


def is_int(value: Any) -> bool:
    """Whether a value is a whole number, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number that every precision holds, and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool) and -BIGGEST < float(value) < BIGGEST


def _batches(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping, Tensor, nn.Module, type))


def _patterns(value: Any) -> bool:
    single = (str, nn.Module)
    return isinstance(value, single) or (
        isinstance(value, Iterable)
        and not isinstance(value, (Iterator, bytes, Mapping, Tensor))
        and all(isinstance(one, single) for one in value)
    )


def _path(value: Any) -> bool:
    plain = os.fspath(value) if isinstance(value, (str, os.PathLike)) else ""
    return isinstance(plain, str) and bool(plain.encode()) and "\0" not in plain


anything = Kind("anything", lambda v: True)
a_module = Kind(
    "an nn.Module (an instance, not its class)", lambda v: isinstance(v, nn.Module) and hasattr(v, "_parameters")
)
an_example = Kind(
    "what forward takes: a tensor, a tuple of positional inputs, or prunus.Inputs",
    lambda v: (
        v is not None
        and not isinstance(v, (str, bytes, bool, int, float, type, nn.Module))
        and (not isinstance(v, Mapping) or all(isinstance(name, str) for name in v))
    ),
)
a_flag = instance("True or False", bool)
a_text = instance("text", str)
a_word = Kind("text that is not empty", lambda v: isinstance(v, str) and bool(v.encode()))
a_path = Kind("the path of a file, in UTF-8", _path)
a_folder = Kind("the path of a folder, in UTF-8", _path)
a_positive_int = ints(1)
a_count = ints(0)
above_zero = Kind("a number above 0", lambda v: is_number(v) and v > 0)
not_negative = Kind("a number of at least 0", lambda v: is_number(v) and v >= 0)
a_number = Kind("a finite number", is_number)
a_share = Kind("a number in (0, 1]", lambda v: is_number(v) and 0 < v <= 1)
a_portion = Kind("a number in [0, 1]", lambda v: is_number(v) and 0 <= v <= 1)
a_function = Kind("a function", callable)
a_named_function = Kind("a name, or a function", lambda v: isinstance(v, str) or callable(v))
a_mapping = instance("a dictionary", Mapping)
some_options = Kind(
    "a dictionary {name: value}", lambda v: isinstance(v, Mapping) and all(isinstance(k, str) for k in v)
)
some_names = Kind(
    "a name, or a list of names",
    lambda v: (
        isinstance(v, str) or (_batches(v) and not isinstance(v, Iterator) and all(isinstance(one, str) for one in v))
    ),
)
some_patterns = Kind("a name, a glob or a module of the model, or a list of them (no generator)", _patterns)
some_batches = Kind("an iterable of batches, e.g. a DataLoader or [(x, y), ...]", _batches)
batches_again = Kind(
    "batches that can be gone through again, e.g. a DataLoader or a list (no generator)",
    lambda v: _batches(v) and not isinstance(v, Iterator),
)
an_optimizer = Kind(
    "a torch.optim.Optimizer, or a list of them",
    lambda v: _is_optimizer(v) or (_collection(v) and len(v) > 0 and all(map(_is_optimizer, v))),
)


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, Optimizer) or (hasattr(value, "param_groups") and callable(getattr(value, "step", None)))
