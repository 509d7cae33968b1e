"""Processes that are forked off."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable


def forked(work: Callable[[], bool]) -> int | None:
    """How a child ends that does some work: 0 where it gives True; None if it does not end within a minute."""
    child = os.fork()
    if child == 0:
        ended = 1
        try:
            ended = 0 if work() else 1
        finally:
            os._exit(ended)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
