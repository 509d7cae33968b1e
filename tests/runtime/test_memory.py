"""One engine, many threads; many engines, and the memory they leave."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")

from prunus.core.inputs import Inputs
from prunus.runtime import compile
from prunus.runtime.capture import capture
from prunus.runtime.plain import network_of

STATUS = Path("/proc/self/statm")
PAGE = 4096


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.GELU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5)).eval()


def memory() -> int:
    gc.collect()
    return int(STATUS.read_text().split()[1]) * PAGE


@pytest.mark.parametrize("threads", [1, 2])
def test_four_threads_get_their_own_answers(threads: int) -> None:
    net = network()
    compiled = compile(net, torch.randn(1, 3, 24, 24), threads=threads)
    inputs = [torch.randn(n % 3 + 1, 3, 24, 24) for n in range(40)]
    want = [net(x).detach() for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for got, wanted in zip(pool.map(compiled, inputs), want):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not STATUS.is_file(), reason="this system does not say how much memory a process has")
def test_networks_that_are_let_go_leave_no_memory_and_no_threads() -> None:
    x = torch.randn(1, 3, 24, 24)
    graph = capture(network(), Inputs.of(x))
    each = network_of(graph, images=1, threads=1).size

    def some(many: int, threads: int = 1) -> None:
        for _ in range(many):
            network_of(graph, images=1, threads=threads)(x)

    some(20)
    before = memory()
    some(200)
    assert memory() - before < 50 * each, "of 200 networks, the activations of 50 are still there"
    running = threading.active_count()
    some(5, threads=2)
    gc.collect()
    assert threading.active_count() <= running + 1
