"""Do the operators of the list stay inside their tensors' memory?  They are called with wrong arguments.

    python -m tests.security.kernels                # every operator that torch has samples for: half an hour
    python -m tests.security.kernels 400 upsample

Calls are taken from torch's own samples of its operators; sizes, numbers, types and values are changed at random, the
guards of `core.guards` are asked as before every call, and the kernel runs in a child on tensors that end, or begin,
exactly beside pages that nobody may touch.  A child that is killed names the operator and the case.
"""

from __future__ import annotations

import faulthandler
import math
import os
import random
import resource
import signal
import sys
import types
import unittest
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from prunus.core.allowed import listed
from prunus.core.guards import guard_of
from tests.runtime import guarded

INTEGERS = (0, 1, -1, 2, 3, 5, 7, -2, -5, 100, -100, 2**31 - 1, -(2**31), 2**40, 2**63 - 1, -(2**63))
FLOATS = (0.0, 1.0, -1.0, 0.5, 1e-300, 1e300, math.nan, math.inf, -math.inf, 1e-6, 100.0, 1e9)
TYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)
RANGES = ((0, 2), (0, 4), (-5, 5), (-1_000_000, 1_000_000), (-(2**62), 2**62))
SECONDS = 8
Calls = dict[Any, list[tuple[Any, Any]]]


class Recorder(TorchDispatchMode):
    """Keeps the first calls of every operator that is `wanted`."""

    def __init__(self, wanted: Callable[[Any], bool]) -> None:
        super().__init__()
        self.wanted, self.calls = wanted, Calls()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "aten" and self.wanted(func) and len(self.calls.setdefault(func, [])) < 12:
            self.calls[func].append(tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs)))
        return func(*args, **kwargs)


def samples(wanted: Callable[[Any], bool], only: str = "") -> Calls:
    """Calls of torch's samples of its own operators, whose names contain `only`."""
    if "expecttest" not in sys.modules:  # which torch's samples import and do not need
        stub = types.ModuleType("expecttest")
        stub.TestCase = unittest.TestCase  # type: ignore[attr-defined]
        sys.modules["expecttest"] = stub
    from torch.testing._internal.common_methods_invocations import op_db

    recorder = Recorder(wanted)
    for op in op_db:
        for dtype in (torch.float32, torch.int64):
            if only not in op.name or dtype not in op.dtypes:
                continue
            with suppress(Exception):
                for _, sample in zip(range(8), op.sample_inputs("cpu", dtype, requires_grad=False)):
                    with suppress(Exception), recorder:
                        op(sample.input, *sample.args, **sample.kwargs)
    return recorder.calls


def drawn(rng: random.Random, shape: list[int], dtype: torch.dtype) -> Tensor:
    """A tensor with a nasty value here and there."""
    if dtype.is_floating_point or dtype.is_complex:
        out, odd = torch.randn(shape).to(dtype), rng.choice((math.nan, math.inf, -1e30, 1e30))
    elif dtype == torch.bool:
        return torch.rand(shape) > 0.5
    else:
        info = torch.iinfo(dtype)
        low, high = rng.choice(RANGES)
        out = torch.randint(max(low, info.min), min(high, info.max), shape).to(dtype)
        odd = rng.choice((info.min, info.max, max(-1, info.min)))
    if out.numel() and rng.random() < 0.3:
        out.view(-1)[rng.randrange(out.numel())] = odd
    return out


def wrong(rng: random.Random, value: Any) -> Any:
    """Another value for an argument."""
    kind = rng.random()
    if isinstance(value, Tensor):
        if kind < 0.35 and value.dim():
            shape = list(value.shape)
            d = rng.randrange(len(shape))
            n = shape[d]
            shape[d] = rng.choice((0, 1, max(n - 1, 0), n // 2, n + 1, n * 2, n * 40))
            return drawn(rng, shape, value.dtype) if math.prod(shape) < 1 << 20 else value
        others = (
            value.unsqueeze(0),
            value.expand(3, *value.shape),
            value.flatten(),
            value.transpose(0, -1) if value.dim() else value,
        )
        if kind < 0.6:
            return rng.choice(others)
        return value.to(rng.choice(TYPES)) if kind < 0.7 else drawn(rng, list(value.shape), value.dtype)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((*INTEGERS, value + 1, value - 1, -value, value * 2))
    if isinstance(value, float):
        return rng.choice(FLOATS)
    if isinstance(value, (list, tuple)) and value:
        new = list(value)
        if kind < 0.3:
            return new[:-1] if kind < 0.15 else [*new, new[0]]
        at = rng.randrange(len(new))
        new[at] = wrong(rng, new[at])
        return new
    return rng.choice((None, None, 1, 1.5, -3, torch.randn(2))) if value is None else value


def beside_pages(tensor: Tensor) -> Tensor:
    """The same tensor in memory that ends, or begins, where nobody may touch."""
    if not tensor.numel() or not tensor.is_contiguous():
        return tensor
    held = torch.from_numpy(guarded.guarded(tensor.nbytes))
    with suppress(RuntimeError):
        return held.view(tensor.dtype).view(tensor.shape).copy_(tensor)
    return tensor


def call(func: Any, calls: list[tuple[Any, Any]], case: int, looked_at: bool) -> None:
    """One call with wrong arguments; whatever it raises is fine."""
    rng = random.Random(f"{func}/{case}")
    torch.manual_seed(case)
    args, kwargs = (kind(value) for kind, value in zip((list, dict), rng.choice(calls)))
    names = [k for k in kwargs if k not in ("device", "layout", "generator")]
    for _ in range(rng.choice((1, 1, 2, 3))):
        slots = [(args, i) for i in range(len(args))] + [(kwargs, k) for k in names]
        if slots:
            holder, key = rng.choice(slots)
            holder[key] = wrong(rng, holder[key])  # type: ignore[index]
    guarded.AT_END = rng.random() < 0.7
    args, kwargs = tree_map_only(Tensor, lambda t: beside_pages(t.detach()), (args, kwargs))
    guard = guard_of(func) if looked_at else None
    if guard is not None:
        guard(args, kwargs)
    out = func(*args, **kwargs)
    for tensor in out if isinstance(out, (tuple, list)) else [out]:
        if isinstance(tensor, Tensor) and tensor.numel() < 1 << 22:
            tensor.clone()


def killed(func: Any, calls: list[tuple[Any, Any]], cases: int, looked_at: bool = True) -> list[tuple[int, int]]:
    """The cases that ended their process, each with the signal."""
    found: list[tuple[int, int]] = []
    start = 0
    while start < cases and len(found) < 4:
        code, last = _child(func, calls, range(start, cases), looked_at)
        if code == 0:
            break
        if code != -signal.SIGALRM:  # much work is no crime: how much a file may ask for is bounded elsewhere
            found.append((last, code))
        start = last + 1
    return found


def _child(func: Any, calls: list[tuple[Any, Any]], cases: range, looked_at: bool) -> tuple[int, int]:
    """How a child ended that ran these cases, and the last case that it began."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1), os.dup2(quiet, 2)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        with open("/proc/self/statm") as file:
            room = int(file.read().split()[0]) * guarded.PAGE + (3 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for case in cases:
            os.write(writer, case.to_bytes(4, "little"))
            signal.alarm(SECONDS)
            with suppress(BaseException):
                call(func, calls, case, looked_at)
            signal.alarm(0)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        begun = file.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), int.from_bytes(begun[-4:] or bytes(4), "little")


def main(cases: int, only: str) -> Iterator[str]:
    """A line for every operator some of whose cases were killed."""
    calls = samples(listed)
    for func in sorted((f for f in calls if only in str(f)), key=str):
        if found := killed(func, calls[func], cases):
            yield f"{func}: {found}"
    yield f"{len(calls)} operators"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for line in main(int(sys.argv[1]) if len(sys.argv) > 1 else 120, sys.argv[2] if len(sys.argv) > 2 else ""):
        print(line, flush=True)
