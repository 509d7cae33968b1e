"""Where does a compiled network spend its time?"""

from __future__ import annotations

import ctypes
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from prunus.core.checks import check_arguments, instance
from prunus.runtime.engine import CompiledNetwork
from prunus.runtime.forms import Step
from prunus.runtime.graph import Node
from prunus.runtime.memory import SIGNATURE


@dataclass(frozen=True)
class Share:
    """A step of a network: its name, what runs it (as in `CompiledNetwork.report`), and its part of the time."""

    name: str
    kind: str
    share: float


def profile(network: CompiledNetwork, rounds: int = 5) -> list[Share]:
    """The share of every step in the processor time of a forward, in the order of execution; they sum to one.

    Args: network: what `prunus.runtime.compile` returned; rounds: timings of every step.

    Steps are run alone, on zeros; of `rounds` timings the least counts.

    >>> from prunus.runtime import compile
    >>> network = compile(torch.nn.Conv2d(3, 4, 3), torch.randn(1, 3, 9, 9))
    >>> round(sum(s.share for s in profile(network)), 6)
    1.0
    """
    check_arguments(locals(), network=instance("what prunus.runtime.compile returned", CompiledNetwork))
    best = timed(network, rounds)
    total = sum(best) or 1.0
    return [Share(step.name, step.kind, seconds / total) for step, seconds in zip(network.steps, best)]


def timed(network: CompiledNetwork, rounds: int) -> list[float]:
    """The seconds of every step, the least of `rounds`."""
    inputs = [_zeros(network.graph.nodes[n]) for n in network.inputs]
    best: list[float] = []
    with network.lock, torch.no_grad():
        for _ in range(rounds):
            took = _round(network, inputs)
            best = [min(pair) for pair in zip(best, took)] if best else took
    return best


def by_torch(network: CompiledNetwork) -> str:
    """In words: what has no kernel, how often, and its share of the time; empty where everything has one."""
    shares = [s for s in profile(network) if s.kind == "torch"]
    if not shares:
        return ""
    counted = Counter(s.name for s in shares)
    names = ", ".join(f"{name} ({times} x)" if times > 1 else name for name, times in counted.items())
    share = 100 * sum(s.share for s in shares)
    return f"Without a kernel, and so run by torch: {names}; {share:.0f} % of the time."


def _zeros(node: Node) -> torch.Tensor:
    kind = getattr(torch, node.numbers.get("dtype", "").removeprefix("torch."), torch.float32)
    return torch.zeros(node.shape, dtype=kind)


def _round(network: CompiledNetwork, inputs: list[torch.Tensor]) -> list[float]:
    """Seconds of every step, one after the other; a kernel's threads in turn."""
    objects: dict[int, Any] = dict(zip(network.inputs, inputs))
    for view, given in zip(network.given, inputs):
        if view is not None:
            view.copy_(given)  # the round before used its memory for other things
    took = []
    for segment in network.segments:
        if isinstance(segment, Step):
            assert segment.run is not None
            start = time.perf_counter()
            segment.run(objects, network._view)
            took.append(time.perf_counter() - start)
            continue
        table, count = segment.view(np.int64)[:2].tolist()
        kernels = np.ctypeslib.as_array((ctypes.c_int64 * (2 * count)).from_address(table)).reshape(count, 2).tolist()
        for kernel, arguments in kernels:
            call = SIGNATURE(kernel)
            start = time.perf_counter()
            for thread in range(network.threads):
                call(arguments, thread, network.threads)
            took.append(time.perf_counter() - start)
    return took
