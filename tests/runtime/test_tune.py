"""Variants are run, the fastest one is taken, and known again."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")

from prunus import runtime
from prunus.runtime import choose, compile, engine, pack, tune
from prunus.runtime.layout import Layout


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 1), nn.SiLU(), nn.Conv2d(24, 24, 3, groups=24)
    )
    model[2].weight.data[torch.rand(24, 16, 1, 1) < 0.9] = 0
    return model.eval()


def choices(compiled: nn.Module) -> list[pack.Choice]:
    return [pack.Choice(*n.numbers["choice"]) for n in compiled.graph.nodes.values() if n.kind == "conv"]


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path))
    return tmp_path


def test_the_fastest_is_taken_kept_and_written_to_files(own_cache, monkeypatch, tmp_path) -> None:
    def slow_first(compiled: engine.CompiledNetwork, rounds: int) -> list[float]:
        timings.append(compiled)
        return [1.0 / len(timings)] * len(compiled.steps)  # the last variant of all

    timings: list[engine.CompiledNetwork] = []
    monkeypatch.setattr(tune, "timed", slow_first)
    model, x = network(), torch.randn(1, 3, 21, 18)
    by_model, tuned = compile(model, x), compile(model, x, tune=True)
    assert 1 < len(timings) <= tune.VARIANTS
    for before, after, last in zip(choices(by_model), choices(tuned), choices(timings[-1])):
        assert after != before
        assert after == last or after.by != "lists"  # a layer may have fewer variants than another
    for got in (by_model(x), tuned(x)):
        torch.testing.assert_close(got, model(x), rtol=1e-4, atol=1e-5)
    many = len(timings)
    assert choices(compile(model, x, tune=True)) == choices(tuned) and len(timings) == many
    model[2].weight.data.zero_()  # another density: another layer
    compile(model, x, tune=True)
    assert len(timings) > many
    runtime.save(tuned, tmp_path / "net")
    again = runtime.load(tmp_path / "net")
    assert choices(again) == choices(tuned) and torch.equal(again(x), tuned(x))


def test_real_times_decide(own_cache) -> None:
    model, x = network(), torch.randn(2, 3, 21, 18)
    for threads in (1, 2):
        tuned = compile(model, x, threads=threads, tune=True)
        torch.testing.assert_close(tuned(x), model(x), rtol=1e-4, atol=1e-5)


def test_variants_differ_in_kind() -> None:
    weight, shape = np.ones((32, 32, 3, 3), dtype=np.float32), pack.Shape(padding=(1, 1))
    found = choose.best(weight, shape, Layout.of(56, 56, lanes=16), 32)
    some = choose.variants(found, 9)
    assert some[0] == found[0][1] and len(choose.variants(found, 4)) == 4
    assert Counter(c.by for c in some) == {"lists": 2, "dense": 2, "winograd": 2}
    assert len({(c.by, c.together) for c in some}) == 6


def test_a_network_without_convolutions_has_nothing_to_tune(own_cache) -> None:
    model, x = nn.Sequential(nn.Linear(7, 5), nn.ReLU()), torch.randn(1, 7)
    torch.testing.assert_close(compile(model, x, tune=True)(x), model(x))
