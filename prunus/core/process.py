"""Settings of the whole process that several threads may need at once."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from prunus.core.forked import Lock, renewed


class Shared:
    """A setting that is made when the first thread asks for it, and put back when the last one is done.

    Two threads that each put back what they found would leave what the other had set.  In a process that was forked
    off, only the thread that forked goes on: what the others held there is given up.

    >>> found = []
    >>> setting = Shared(lambda stack: found.append("set") or stack.callback(found.append, "back"))
    >>> with setting(), setting():
    ...     pass
    >>> found
    ['set', 'back']
    """

    def __init__(self, make: Callable[[ExitStack], object]) -> None:
        self._make, self._lock, self._stack = make, threading.RLock(), ExitStack()
        self._held: dict[int, int] = {}  # by thread, how many times
        renewed(self)

    def renew(self) -> None:
        """Gives up what other threads held, in the child of a fork."""
        mine = threading.get_ident()
        self._lock = threading.RLock()
        self._held = {mine: self._held[mine]} if mine in self._held else {}
        if not self._held:
            self._stack.close()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        mine = threading.get_ident()
        with self._lock:
            if not self._held:
                self._make(self._stack)
            self._held[mine] = self._held.get(mine, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._held[mine] -= 1
                if not self._held[mine]:
                    del self._held[mine]
                if not self._held:
                    self._stack.close()


def _slow_attention(stack: ExitStack) -> None:
    stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
    torch.backends.mha.set_fastpath_enabled(False)


def _no_onednn(stack: ExitStack) -> None:
    stack.callback(torch._C._set_mkldnn_enabled, torch._C._get_mkldnn_enabled())
    torch._C._set_mkldnn_enabled(False)


def _silence(stack: ExitStack) -> None:
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")


def _random_states(stack: ExitStack) -> None:
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    stack.enter_context(torch.random.fork_rng(devices=devices))


plain_attention = Shared(_slow_attention)  # the fused one is other operators than those that are called in training
without_onednn = Shared(_no_onednn)
without_cudnn = Shared(lambda stack: stack.enter_context(torch.backends.cudnn.flags(enabled=False)))
without_warnings = Shared(_silence)
same_random = Shared(_random_states)  # torch's random states are what they were
EXPORTING = Lock()  # torch.export is for one thread at a time
