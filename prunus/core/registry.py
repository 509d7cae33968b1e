"""One small registry for everything that has a name: criteria, allocators, regularizers, latency backends ..."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from prunus.core.errors import UnknownNameError, did_you_mean

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered function or class: its name, what it declares about itself, and the paper it is from.

    Attributes:
        call: the function or class itself.
        paper: authors, title, place and year; "" where it is from no paper.
    """

    name: str
    call: T
    paper: str = ""
    declares: Mapping[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The first sentence of the docstring: what ``prunus ls`` prints."""
        return (inspect.getdoc(self.call) or "").split("\n")[0]


class Registry(Generic[T]):
    """Names and what they stand for; a name that is not there is answered with the nearest one.

    Args:
        kind: what the names stand for, in the singular: errors say it.

    >>> fruit = Registry("fruit")
    >>> @fruit.register("plum", paper="Linnaeus 1753")
    ... def plum():
    ...     "A drupe."
    >>> fruit["plum"].line
    'A drupe.'
    >>> fruit["plumb"]
    Traceback (most recent call last):
    prunus.core.errors.UnknownNameError: there is no fruit named 'plumb'. Did you mean 'plum'? Known: plum.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry[T]] = {}

    def register(self, name: str, *, paper: str = "", **declares: Any) -> Callable[[T], T]:
        """Decorator: put a function or class of `paper` here as `name`; other keywords are what it declares."""

        def put(call: T) -> T:
            if name in self._entries:
                raise ValueError(f"{self.kind} '{name}' is registered twice: {self._entries[name].call}, {call}")
            self._entries[name] = Entry(name, call, paper, declares)
            return call

        return put

    def __getitem__(self, name: str) -> Entry[T]:
        if name not in self._entries:
            known = ", ".join(sorted(self._entries))
            hint = did_you_mean(str(name), self._entries)
            raise UnknownNameError(f"there is no {self.kind} named '{name}'.{hint} Known: {known}.")
        return self._entries[name]

    def __iter__(self) -> Iterator[Entry[T]]:
        return iter(self._entries.values())

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, what: str | T) -> Entry[T]:
        """The entry of `what`: a name, or the registered function or class itself.

        Raises: `UnknownNameError` when it is a name, or a callable, that was never registered.
        """
        if isinstance(what, str):
            return self[what]
        for entry in self:
            if entry.call is what:
                return entry
        raise UnknownNameError(f"{what!r} is not a registered {self.kind}; decorate it with the registry first.")
