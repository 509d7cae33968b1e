"""Example inputs and functions as they are named on the command line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import InputError, Inputs

_ONE = re.compile(r"^\s*(\d+(?:\s*,\s*\d+)*)\s*(?::\s*([a-z0-9]+)\s*(?:<\s*(\d+))?)?\s*$")
LARGEST = 2**30  # numbers of an example input
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


def inputs_like(signature: Sequence[Mapping[str, Any]]) -> Inputs:
    """Example inputs of the shapes and types that a plan keeps: random floats, zeros for whole numbers and tokens.

    >>> inputs_like([{"shape": [1, 4], "dtype": "int64"}]).tensors
    [tensor([[0, 0, 0, 0]])]
    """
    generator = torch.Generator().manual_seed(0)
    found = ((tuple(one["shape"]), getattr(torch, one["dtype"])) for one in signature)
    return Inputs(
        tuple(
            torch.randn(shape, generator=generator).to(dtype)
            if dtype.is_floating_point
            else torch.zeros(shape, dtype=dtype)
            for shape, dtype in found
        )
    )


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
    if math.prod(shape) > LARGEST:
        raise InputError(f"--input {whole!r}: '{part}' has {math.prod(shape):,} numbers; at most {LARGEST:,} are made.")
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


def measure_of(spec: str) -> Callable[[nn.Module], float]:
    """The user's own measure named ``path/file.py:name``; what it raises or returns wrongly is an `InputError`."""
    own = function(spec, "evaluate")

    def measure(model: nn.Module) -> float:
        try:
            given = own(model)
        except Exception as error:  # the user's own code
            raise InputError(f"evaluate {spec!r} raised {type(error).__name__}: {error}") from error
        try:
            value = float(given)
        except (TypeError, ValueError, RuntimeError):
            value = math.nan
        if not math.isfinite(value):
            raise InputError(f"evaluate {spec!r} returned {given!r}; expected one finite number, higher is better.")
        return value

    return measure
