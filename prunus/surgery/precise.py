"""Everything in one precision, whatever the model's code asks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class Precise(TorchDispatchMode):
    """Computes in float64 what the model's code would compute in a lower precision, and says if there was any.

    Tensors that are made of numbers alone, or of integers, have the precision `dtype` too.  (torch's own default is one
    for all threads, and stays as it is.)
    """

    LOWER = (torch.float32, torch.float16, torch.bfloat16)

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.active, self.dtype, self.default = dtype is torch.float64, dtype, torch.get_default_dtype()
        self.raised = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.active and any(map(self._lower, (*args, *kwargs.values()))):
            self.raised = True
            args, kwargs = tree_map(self._raised, (args, dict(kwargs)))
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and out.dtype is self.default is not self.dtype and not func._schema.is_mutable:
            made = not any(isinstance(t, Tensor) and t.is_floating_point() for t in tree_leaves((args, kwargs)))
            self.raised |= made
            out = out.to(self.dtype) if made else out
        return out

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
