"""A progress bar, with the time that is left, that appears only when something takes long."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


def progress(
    items: Iterable[T], what: str, *, after: float = 2.0, efforts: Sequence[float] | None = None
) -> Iterator[T]:
    """The same items; once `after` seconds have passed, a bar on stderr says how far it is, and how long it will take.

    A loop inside of another one moves the outer one's bar.  `efforts` says what each item takes, in any unit.

    >>> list(progress([1, 2], "counting"))
    [1, 2]
    """
    loop = _Loop(what, efforts or [1.0] * getattr(items, "__len__", lambda: 0)(), after)
    running = _loops()
    running.append(loop)
    try:
        for item in items:
            yield item
            loop.advance()
            running[0].show(running)
    finally:
        running.remove(loop)
        if loop.bar is not None:
            loop.bar.stop()


@dataclass(eq=False)
class _Loop:
    """A loop that runs: `done` items of those whose `efforts` are known; none for a loop of unknown length."""

    what: str
    efforts: Sequence[float]
    after: float
    done: int = 0
    past: float = 0.0  # efforts of the items that are done
    bar: Any = None
    start: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.total = sum(self.efforts)

    @property
    def effort(self) -> float:
        """What the item that runs takes."""
        return self.efforts[self.done] if self.done < len(self.efforts) else 0.0

    def advance(self) -> None:
        self.past += self.effort
        self.done += 1

    def show(self, loops: Sequence[_Loop]) -> None:
        """Show how far this loop is, by what those inside of it say, if it takes long."""
        if time.monotonic() - self.start <= self.after:
            return
        share = _share(loops) if self.total else None
        self.bar = self.bar or _bar(self.what, None if share is None else 1.0)
        self.bar.update(self.bar.task_ids[0], completed=self.done if share is None else share)


_running = threading.local()


def _loops() -> list[_Loop]:
    """The loops of this thread that run now, the outermost first."""
    loops: list[_Loop] = _running.__dict__.setdefault("loops", [])
    return loops


def _share(loops: Sequence[_Loop]) -> float:
    """How much of the first loop is done; the ones behind it run inside of it.

    >>> outer, inner = _Loop("rows", [1.0, 3.0], 2.0), _Loop("columns", [1.0] * 3, 2.0)
    >>> outer.advance(), inner.advance(), _share([outer]), _share([outer, inner])
    (None, None, 0.25, 0.5)
    """
    first, inside = loops[0], loops[1:]
    part = _share(inside) if inside else 0.0
    return (first.past + part * first.effort) / first.total if first.total else 0.0


def _bar(what: str, total: float | None) -> Any:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    bar.add_task(what, total=total)
    bar.start()
    return bar
