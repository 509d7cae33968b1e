"""Everything in one precision, whatever the model's code asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """While this is open, tensors are made in `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Precise(TorchDispatchMode):
    """Computes in float64 what the model's code would compute in a lower precision, and says if there was any."""

    LOWER = (torch.float32, torch.float16, torch.bfloat16)

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.active = dtype is torch.float64
        self.raised = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.active and any(map(self._lower, (*args, *kwargs.values()))):
            self.raised = True
            args, kwargs = tree_map(self._raised, (args, dict(kwargs)))
        return func(*args, **kwargs)

    def _lower(self, value: Any) -> bool:
        """Whether there is something to be raised in an argument."""
        if isinstance(value, (tuple, list)):
            return any(map(self._lower, value))
        if isinstance(value, Tensor):
            return value.dtype in self.LOWER
        return isinstance(value, dict) or (isinstance(value, torch.dtype) and value in self.LOWER)

    def _raised(self, leaf: Any) -> Any:
        if isinstance(leaf, torch.dtype):
            return torch.float64 if leaf in self.LOWER else torch.complex128 if leaf.is_complex else leaf
        if isinstance(leaf, Tensor) and leaf.is_complex():
            return leaf.to(torch.complex128)
        return leaf.double() if isinstance(leaf, Tensor) and leaf.dtype in self.LOWER else leaf
