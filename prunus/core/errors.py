"""The exceptions of prunus: one tree, so that a caller can catch as much as they mean to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


class PrunusError(Exception):
    """Anything prunus raises on purpose.

    ::

        PrunusError
        ├── InputError            what the user gave is wrong (command line: exit code 2)
        │   ├── UnknownNameError  no such criterion, allocator, model, recipe, group ...
        │   ├── BudgetError       the budget cannot be met, or is not a budget
        │   ├── NothingToPruneError  no unit of the network may be removed
        │   ├── FileError         a file is missing, truncated, edited, or of another network
        │   └── MissingExtraError an optional library is not installed
        ├── TraceError            the model's forward could not be followed
        ├── VerificationError     a cut changed the function; the model was put back
        ├── TrainingError         training cannot go on (the loss is not a number ...)
        └── WriteError            the disk did not take a file; an `OSError` as well
    """


class InputError(PrunusError, ValueError):
    """What the user gave is wrong: one clear message, and nothing was changed."""


class UnknownNameError(InputError, KeyError):
    """A name that no registry, model or plan knows."""

    __str__ = Exception.__str__  # KeyError would print the message quoted


class BudgetError(InputError):
    """A budget that is malformed, or that cannot be met: then `least` is the least reachable cost of every kind.

    Args:
        message: what was given, what was expected, and what to do.
        least: by kind of cost, in its unit; None where the budget is malformed.
    """

    def __init__(self, message: str, least: Mapping[str, int] | None = None) -> None:
        super().__init__(message)
        self.least = least


class NothingToPruneError(InputError):
    """No unit of the network may be removed."""


class FileError(InputError):
    """A file that is missing, truncated, edited, or of another network."""


class MissingExtraError(InputError, ImportError):
    """An optional library that is not installed."""


class TraceError(PrunusError):
    """The model's forward could not be followed."""


class VerificationError(PrunusError):
    """A cut changed the function of the network; the model was restored.  `groups` names those to blame, if known.

    Args:
        message: what differs, by how much, and what to do.
        groups: their ids; () where nobody knows.
    """

    def __init__(self, message: str, groups: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.groups = tuple(groups)


class TrainingError(PrunusError):
    """Training cannot go on; the last good checkpoint is kept."""


class WriteError(PrunusError, OSError):
    """The disk did not take a file: it is full, or it may not be written there; what was there is still whole."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The hint ``' Did you mean ...?'`` for a name `given` that is close to a `known` one, else the empty string.

    >>> did_you_mean("l3", ["l1", "bn-gamma"])
    " Did you mean 'l1'?"
    """
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def missing_extra(library: str, extra: str) -> MissingExtraError:
    """The error for an optional `library`, with the one line that installs it: the `extra` of prunus that has it.

    >>> print(missing_extra("timm", "timm"))
    timm is not installed. Install it with:  pip install "prunus[timm]"
    """
    return MissingExtraError(f'{library} is not installed. Install it with:  pip install "prunus[{extra}]"')
