"""What a process that was forked off has to make anew: threads, which are not copied, and locks that nobody opens."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any, Protocol


class Renewed(Protocol):
    """What has something that does not survive a fork."""

    def renew(self) -> None:
        """Makes it anew, in the child."""


_LIVE: weakref.WeakSet[Any] = weakref.WeakSet()


def renewed(one: Renewed) -> None:
    """From here on, `one.renew()` is called in every process that is forked off."""
    _LIVE.add(one)


def _renew() -> None:
    for one in list(_LIVE):
        one.renew()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_renew)


class Lock:
    """A lock that is open in a process that was forked off, whoever held it then.

    >>> lock = Lock()
    >>> with lock:
    ...     lock.held.locked()
    True
    """

    def __init__(self) -> None:
        self.renew()
        renewed(self)

    def renew(self) -> None:
        """Opens it."""
        self.held = threading.Lock()

    def __enter__(self) -> None:
        self.held.acquire()

    def __exit__(self, *_: Any) -> None:
        self.held.release()
