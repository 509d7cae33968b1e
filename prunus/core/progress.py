"""A progress bar that appears only when something takes long."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


def progress(items: Iterable[T], what: str, *, after: float = 2.0) -> Iterator[T]:
    """The same items; once `after` seconds have passed, a bar on stderr says how far it is.

    >>> list(progress([1, 2], "counting"))
    [1, 2]
    """
    start, bar, total = time.monotonic(), None, getattr(items, "__len__", lambda: None)()
    try:
        for done, item in enumerate(items):
            yield item
            if bar is None and time.monotonic() - start > after:
                bar = _bar(what, total)
            if bar is not None:
                bar.update(bar.task_ids[0], completed=done + 1)
    finally:
        if bar is not None:
            bar.stop()


def _bar(what: str, total: int | None) -> Any:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    bar.add_task(what, total=total)
    bar.start()
    return bar
