"""The user's own code: when it fails, its traceback comes out as it is, with a line that says which argument it was."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.core.errors import InputError, PrunusError

if TYPE_CHECKING:
    from prunus.core.inputs import Inputs

T = TypeVar("T")
OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)  # of the machine, not of what was given


class Ended(SystemExit):
    """The program ends because it was asked to from outside (SIGTERM): nothing is wrong."""


@contextmanager
def users(argument: str, function: Any = None) -> Iterator[None]:
    """Around code that the user brought as `argument` (``"loss="``): what it raises gets a line that says so.

    Raises: what the code raises; `PrunusError` where it would end the whole program (``sys.exit``).

    >>> try:
    ...     with users("loss="):
    ...         raise ZeroDivisionError("by zero")
    ... except ZeroDivisionError as error:
    ...     print(noted(error)[-1])
    This was raised by your own code, given as loss=.
    """
    try:
        yield
    except (PrunusError, Ended):
        raise
    except SystemExit as error:
        raise PrunusError(
            f"{argument}{_where(function)} ended the program (sys.exit({error.code!r})): return a value, or raise an "
            "error."
        ) from error
    except Exception as error:
        note(error, f"This was raised by your own code, given as {argument}{_where(function)}.")
        raise


def own(function: Callable[..., T], argument: str) -> Callable[..., T]:
    """The user's `function`, which says by itself that it was given as `argument`."""
    if getattr(function, "__module__", "").partition(".")[0] == "prunus":
        return function

    @functools.wraps(function, updated=())
    def called(*args: Any, **kwargs: Any) -> T:
        with users(argument, function):
            return function(*args, **kwargs)

    return called


def each(items: Iterable[T], argument: str = "the batches (data=)") -> Iterator[T]:
    """The same items, where a failure of the user's own iterable says what it was given as."""
    with users(argument):
        found = iter(items)
    while True:
        with users(argument):
            try:
                item = next(found)
            except StopIteration:
                return
        yield item


EXAMPLE = "Give example_inputs that `model(*example_inputs)` accepts."
BATCHES = "Give batches (x, y), or x, where x is what forward takes."


def forward(
    model: nn.Module, inputs: Inputs, what: str, hint: str = BATCHES, call: Callable[[], Any] | None = None
) -> Any:
    """What `model` (or a `call` of it) gives for `inputs`, which are `what` of the user's.

    Raises: `InputError` with the shapes and the `hint` when its forward does not take them.
    """
    try:
        return call() if call is not None else inputs(model)
    except (PrunusError, *OUT_OF_MEMORY):
        raise
    except Exception as error:  # whatever the forward of a user's model raises
        shapes = " + ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in inputs.tensors)
        reason = (str(error).strip() or "no message").split("\n")[0]
        raise InputError(
            f"the forward of {type(model).__name__} does not take {what} of {shapes or 'no tensors'} "
            f"({type(error).__name__}: {reason}). {hint}"
        ) from error


def note(error: BaseException, line: str) -> None:
    """Add a line that is printed below the error's traceback; before Python 3.11, to its message."""
    if line in noted(error):
        return
    if sys.version_info >= (3, 11):
        error.add_note(line)
    elif error.args and isinstance(error.args[0], str):
        error.args = (f"{error.args[0]}\n{line}", *error.args[1:])
    else:
        error.args = (*error.args, line)


def noted(error: BaseException) -> list[str]:
    """The lines that `note` added."""
    inside = [line for arg in error.args if isinstance(arg, str) for line in arg.split("\n")[1:]]
    return [*inside, *getattr(error, "__notes__", ())]


def a_loss(value: Any, samples: int, argument: str = "loss=") -> Tensor:
    """What a loss gave, if it is one number or one a sample, finite, and depends on the weights.

    Raises: `InputError` for anything else.

    >>> a_loss(torch.zeros(2, 3, requires_grad=True) * 1, 2)
    Traceback (most recent call last):
    prunus.core.errors.InputError: loss= gave a tensor of shape (2, 3); expected one number, or one a sample: (2,).
    """
    if not isinstance(value, Tensor) or not value.requires_grad:
        given = "a tensor without a gradient" if isinstance(value, Tensor) else repr(value)[:80]
        raise InputError(f"{argument} gave {given}; expected a tensor that depends on the weights, e.g. a mean.")
    if value.numel() != 1 and not (value.numel() == samples == len(value)):
        raise InputError(
            f"{argument} gave a tensor of shape {tuple(value.shape)}; expected one number, or one a sample: "
            f"({samples},). Take the mean over the other dimensions."
        )
    if not bool(value.isfinite().all()):
        raise InputError(f"{argument} gave a number that is not finite: look at the data and the network's outputs.")
    return value


def cross_entropy(output: Tensor, labels: Any, reduction: str = "none") -> Tensor:
    """The cross-entropy of logits ``(N, C, ...)``; raises `InputError` for labels that are not of this output."""
    if not isinstance(output, Tensor):
        raise InputError(f"logits were expected, a tensor (N, C); forward gave {repr(output)[:80]}.")
    try:
        return F.cross_entropy(output, labels, reduction=reduction)
    except OUT_OF_MEMORY:
        raise
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        given = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else repr(labels)[:80]
        if isinstance(labels, Tensor) and labels.numel() and not labels.is_floating_point():
            given += f" from {int(labels.min())} to {int(labels.max())}"
        raise InputError(
            f"the labels of a batch do not fit the output of shape {tuple(output.shape)}: they are {given} ({error}). "
            "Give class numbers below the number of outputs, or a loss= of your own."
        ) from error


def _where(function: Any) -> str:
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    name = getattr(function, "__qualname__", "")
    return f" ({name}, {code.co_filename} line {code.co_firstlineno})" if code is not None else ""
