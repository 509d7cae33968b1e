"""Stopping between two steps instead of in the middle of one."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from prunus.core.callbacks import Ended


class Interrupt:
    """While entered, Ctrl-C (and SIGTERM) only sets `wanted`; a second Ctrl-C interrupts at once.

    Outside the main thread, where signals cannot be handled, it does nothing.
    """

    def __init__(self) -> None:
        self.wanted: signal.Signals | None = None
        self._old: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wanted is not None:
            raise KeyboardInterrupt
        self.wanted = signal.Signals(number)

    def leave(self) -> None:
        """End the program as the signal asked: `KeyboardInterrupt` for Ctrl-C, `SystemExit` for SIGTERM."""
        if self.wanted == signal.SIGTERM:
            raise Ended(128 + signal.SIGTERM)
        raise KeyboardInterrupt
