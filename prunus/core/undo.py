"""All or nothing: a verb that fails, or is interrupted, leaves everything as it was.

What a verb may change is noted by reference when it begins: no weight is copied.  What is written into the memory of a
tensor is copied just before, by `keep_values`.  To put back is to put references back, which cannot fail.
"""

from __future__ import annotations

import random
import signal
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

HOLDERS = (dict, OrderedDict, defaultdict, list, set)  # hooks too: what forward notes in an attribute belongs together
HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")  # of tensors
_MISSING = object()


class _Here(threading.local):
    """What is open in this thread, outermost first."""

    def __init__(self) -> None:
        self.open: list[Before] = []


_here = _Here()


@contextmanager
def all_or_nothing(*subjects: Any) -> Iterator[Before]:
    """When what is inside raises anything, `subjects` are put back as they were, and the random state with them.

    A network is all of its modules with their classes, attributes, hooks and modes, and its parameters and buffers with
    gradients and flags; an optimizer is its parameter groups and its state; anything else is its attributes.  None is
    nothing.  It may be opened again inside: each time, what is open goes back to where that began.  Ctrl-C waits until
    everything is back.

    >>> layer = nn.Linear(2, 1)
    >>> try:
    ...     with all_or_nothing(layer):
    ...         layer.weight.data = layer.weight.data[:, :1]
    ...         del layer.bias
    ...         raise MemoryError
    ... except MemoryError:
    ...     print(layer.weight.shape, layer.bias.shape)
    torch.Size([1, 2]) torch.Size([1])
    """
    before, depth = Before(subjects), len(_here.open)
    _here.open.append(before)
    try:
        yield before
        if depth:
            _here.open[depth - 1].take(before)
    except BaseException:
        try:
            with interrupts_held():
                before.restore()
        except KeyboardInterrupt:  # it came just before it could be held, or was held: twice is as good as once
            with interrupts_held():
                before.restore()
            raise
        raise
    finally:
        del _here.open[depth:]


def keep_values(*tensors: Tensor | None) -> None:
    """To be said of tensors that are about to be written in place: a failure puts their numbers back."""
    if _here.open:
        _here.open[-1].keep(tensors)


def keep_item(holder: Any, key: Any) -> None:
    """To be said of an item of a dictionary or list that is about to be set, where no network or optimizer holds it."""
    if _here.open:
        present = isinstance(holder, list) or key in holder
        _here.open[-1].items.append((holder, key, holder[key] if present else _MISSING))


class Before:
    """How things were; see `all_or_nothing`."""

    def __init__(self, subjects: tuple[Any, ...]) -> None:
        self.holders: list[tuple[Any, Any]] = []  # dictionaries, lists and sets, and what was in them
        self.classes: list[tuple[nn.Module, type]] = []
        self.tensors: list[tuple[Tensor, Tensor, Tensor | None, bool]] = []  # data, gradient, whether it asks for one
        self.unhooked: list[tuple[Tensor, str]] = []
        self.values: dict[Any, tuple[Tensor, Tensor]] = {}  # memory that is written, and what was in it
        self.items: list[tuple[Any, Any, Any]] = []
        self.others: list[Before] = []  # that were open inside, of something else
        self.random = None if _here.open else _random_states()
        for subject in subjects:
            if subject is not None:
                self._note(subject)
        self.subjects = {id(s) for s in subjects} | {id(tensor) for tensor, *_ in self.tensors}

    def _note(self, subject: Any) -> None:
        if isinstance(subject, Tensor):
            self._note_tensor(subject)
            self.keep([subject])
            return
        modules = list(subject.modules()) if isinstance(subject, nn.Module) else []
        for one in modules or [subject]:
            attributes = vars(one)
            self._hold(attributes)
            for value in attributes.values():
                if type(value) in HOLDERS:
                    self._hold(value)
        self.classes += [(module, type(module)) for module in modules]
        if isinstance(subject, Optimizer):
            for value in (*subject.state.values(), *subject.param_groups, *(g["params"] for g in subject.param_groups)):
                if type(value) in HOLDERS:
                    self._hold(value)
        held = {id(t): t for m in modules for t in (*m._parameters.values(), *m._buffers.values()) if t is not None}
        for tensor in held.values():
            self._note_tensor(tensor)
        self.keep(t for m in modules for t in m._buffers.values())

    def _hold(self, holder: Any) -> None:
        self.holders.append((holder, holder.copy() if holder else ()))

    def _note_tensor(self, tensor: Tensor) -> None:
        if not is_lazy(tensor):
            self.tensors.append((tensor, tensor.data, tensor.grad if tensor.is_leaf else None, tensor.requires_grad))
            self._hold(vars(tensor))
            for name in HOOKS:
                if (hooks := getattr(tensor, name)) is None:
                    self.unhooked.append((tensor, name))
                else:
                    self._hold(hooks)

    def keep(self, tensors: Any) -> None:
        """Copy the numbers of tensors, unless they are kept already."""
        for tensor in tensors:
            if tensor is None or is_lazy(tensor) or (key := _memory(tensor)) in self.values:
                continue
            memory = tensor.detach()
            self.values[key] = memory, memory.clone()

    def take(self, inner: Before) -> None:
        """Know what one that was open inside knew, as far as it is not known already."""
        for key, value in inner.values.items():
            self.values.setdefault(key, value)
        self.items += inner.items
        if not inner.subjects <= self.subjects:
            self.others += [*inner.others, inner]

    def restore(self) -> None:
        """Put everything back; it may be done twice."""
        for other in reversed(self.others):
            other.restore_own()
        self.restore_own()

    def restore_own(self) -> None:
        """Put back what was named when this was opened, and all that was written."""
        for module, kind in self.classes:
            if type(module) is not kind:
                module.__class__ = kind
        for holder, key, value in reversed(self.items):
            if value is not _MISSING:
                holder[key] = value
            elif key in holder:
                del holder[key]
        for holder, content in self.holders:
            holder.clear()
            holder.extend(content) if isinstance(holder, list) else holder.update(content)
        for tensor, data, grad, asks in self.tensors:
            if not _same(tensor, data):
                replace_data(tensor, data)
            if tensor.is_leaf:
                tensor.requires_grad_(asks).grad = grad
        for tensor, name in self.unhooked:
            if (hooks := getattr(tensor, name)) is not None:
                hooks.clear()
        with torch.no_grad():
            for memory, numbers in self.values.values():
                memory.copy_(numbers)
        if self.random is not None:
            random.setstate(self.random[0])
            np.random.set_state(self.random[1])
            torch.set_rng_state(self.random[2])
            if self.random[3]:
                torch.cuda.set_rng_state_all(self.random[3])


def _random_states() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _memory(tensor: Tensor) -> Any:
    """What tells the memory of a tensor from others."""
    try:
        return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride()
    except (RuntimeError, NotImplementedError):  # sparse tensors, and others without one memory
        return id(tensor)


def _same(tensor: Tensor, data: Tensor) -> bool:
    return tensor.dtype == data.dtype and tensor.device == data.device and _memory(tensor) == _memory(data)


def replace_data(tensor: Tensor, data: Tensor) -> None:
    """Other data under the same identity; the gradient is None then.

    A loss that is still alive keeps the tensor's gradient accumulator, with the old shape, and the next backward would
    meet it; torch makes a new one only when the type of the data changes, so that it does, for a moment.
    """
    tensor.grad = None
    if tensor.requires_grad:
        other = torch.float16 if data.dtype is torch.float32 else torch.float32
        tensor.data = torch.empty(0, dtype=other, device=data.device)
    tensor.data = data


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until what is inside is done.  Only the main thread meets it."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[tuple[Any, Any]] = []
    signal.signal(signal.SIGINT, lambda *told: came.append(told))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if came:
        handler(*came[0])
