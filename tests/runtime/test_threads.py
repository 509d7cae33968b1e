"""Threads and processes: networks are compiled and called by many at a time, and work on in what is forked off."""

from __future__ import annotations

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")

from prunus.core.errors import InputError
from prunus.runtime import DynamicConv2d, compile, jit, load, save
from tests.forking import forked


def layers(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 4, 3)).eval()


@pytest.mark.parametrize("threads", [0, -1, 257, 10**12, 1.0, True, "2", None])
def test_a_number_of_threads_that_is_none_is_refused(threads, tmp_path) -> None:
    x = torch.randn(1, 3, 9, 9)
    save(compile(layers(), x), tmp_path / "net")
    for call in (
        lambda: load(tmp_path / "net", threads=threads),
        lambda: compile(layers(), x, threads=threads),
        lambda: DynamicConv2d(nn.Conv2d(3, 4, 3), x, threads=threads),
    ):
        with pytest.raises(InputError, match="threads=.*a whole number"):
            call()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_network_runs_on_in_a_process_that_was_forked_off(threads: int) -> None:
    x = torch.randn(2, 3, 9, 9)
    network = compile(layers(), x, threads=threads)
    some = DynamicConv2d(nn.Conv2d(3, 4, 3), x, threads=threads)
    want, other = network(x), some(x, [0, 2], [1, 3])

    def work() -> bool:
        twice = [torch.equal(network(x), want) and torch.equal(some(x, [0, 2], [1, 3]), other) for _ in range(3)]
        return all(twice)

    assert forked(work) == 0 and work()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_lock_that_another_thread_held_is_open_after_a_fork() -> None:
    x = torch.randn(1, 3, 9, 9)
    network = compile(layers(), x)
    want = network(x)
    with network.lock, jit.MAKING:
        assert forked(lambda: torch.equal(network(x), want)) == 0


def test_networks_are_compiled_by_several_threads_at_a_time() -> None:
    sys.setswitchinterval(1e-5)
    try:
        models = [layers(4 + i) for i in range(6)]
        x = torch.randn(1, 3, 9, 9)
        with ThreadPoolExecutor(6) as pool:
            made = list(pool.map(lambda m: compile(m, x), models))
    finally:
        sys.setswitchinterval(0.005)
    for network, model in zip(made, models):
        torch.testing.assert_close(network(x), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_one_network_is_called_by_several_threads_at_a_time() -> None:
    model = nn.Sequential(*layers(), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3)).eval()
    network, wrong = compile(model, torch.randn(1, 3, 12, 12), threads=2), []

    def work(seed: int) -> None:
        for i in range(10):
            x = torch.randn(1 + i % 3, 3, 12, 12, generator=torch.Generator().manual_seed(seed * 100 + i))
            if not torch.allclose(network(x), model(x), rtol=1e-4, atol=1e-5):
                wrong.append(seed)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not wrong and not any(worker.is_alive() for worker in workers)


def test_threads_that_are_left_without_the_others_end(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = layers(), torch.randn(1, 3, 12, 12)
    network = compile(model, x, threads=3)
    pool, started = network.workers.pool, []

    def submit(*given: Any) -> Any:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(ThreadPoolExecutor.submit(pool, *given))
        return started[0]

    monkeypatch.setattr(pool, "submit", submit)
    with pytest.raises(RuntimeError, match="new thread"):
        network(x)
    assert started[0].done()
    monkeypatch.undo()
    assert torch.allclose(network(x), model(x), atol=1e-5)


def test_an_interrupt_waits_until_all_threads_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = layers(), torch.randn(1, 3, 12, 12)
    network = compile(model, x, threads=2)
    pool, started = network.workers.pool, []

    def submit(*given: Any) -> Any:
        started.append(ThreadPoolExecutor.submit(pool, *given))
        signal.raise_signal(signal.SIGINT)
        return started[-1]

    monkeypatch.setattr(pool, "submit", submit)
    with pytest.raises(KeyboardInterrupt):
        network(x)
    assert started and all(one.done() for one in started)
