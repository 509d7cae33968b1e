"""Example inputs and functions as they are named on the command line."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prunus.core import InputError, Inputs

_ONE = re.compile(r"^\s*(\d+(?:\s*,\s*\d+)*)\s*(?::\s*([a-z0-9]+)\s*(?:<\s*(\d+))?)?\s*$")
_TYPES = {
    name: getattr(torch, name) for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool")
}


def parse_input(text: str) -> Inputs:
    """Random example inputs from their shapes, the same on every call.

    ``1,3,224,224`` is a float32 tensor; ``1,16:int64<1000`` whole numbers below 1000; several are joined by ``+``.

    Raises: `InputError` for anything else.

    >>> [tuple(t.shape) for t in parse_input("1,16:int64<1000+1,16:bool").tensors]
    [(1, 16), (1, 16)]
    """
    generator = torch.Generator().manual_seed(0)
    return Inputs(tuple(_tensor(part, text, generator) for part in text.split("+")))


def _tensor(part: str, whole: str, generator: torch.Generator) -> Tensor:
    match = _ONE.match(part)
    if not match:
        raise InputError(
            f"--input {whole!r}: '{part}' is not a shape. Expected e.g. 1,3,224,224 (float32) or 1,16:int64<1000 "
            "(whole numbers below 1000); several inputs are joined by +."
        )
    shape, kind, below = [int(n) for n in match[1].split(",")], match[2] or "float32", match[3]
    if kind not in _TYPES or min(shape) < 1:
        raise InputError(f"--input {whole!r}: '{part}' needs sizes above 0 and one of the types {', '.join(_TYPES)}.")
    dtype = _TYPES[kind]
    if dtype.is_floating_point:
        if below:
            raise InputError(f"--input {whole!r}: '<{below}' goes with int64, int32; '{part}' is {kind}.")
        return torch.randn(shape, generator=generator).to(dtype)
    top = 2 if dtype is torch.bool else int(below or 2)
    return torch.randint(0, max(top, 1), shape, generator=generator).to(dtype)


def function(spec: str, option: str) -> Callable[..., Any]:
    """The function named ``path/file.py:name``; `option` is what asked for it.

    Raises: `InputError` when there is no such file or function.
    """
    from prunus.zoo.sources import _run_file

    file, colon, name = spec.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise InputError(f"{option} {spec!r}: expected path/file.py:function.")
    from pathlib import Path

    found = getattr(_run_file(Path(file)), name, None)
    if not callable(found):
        raise InputError(f"{option} {spec!r}: {file} defines no function '{name}'.")
    return found
