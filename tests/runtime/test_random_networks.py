"""Networks drawn at random give in the engine what they give in torch; ``PRUNUS_NETWORKS=500`` draws more."""

from __future__ import annotations

import os

import pytest
import torch
from torch.utils._pytree import tree_flatten

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")

from prunus.runtime import compile, load, save
from tests.runtime.drawn import Network

CLOSE = 2e-4
FOUND = [34]  # a picture of which a convolution sees a part, before it is made larger
SEEDS = [*range(int(os.environ.get("PRUNUS_NETWORKS", "16"))), *FOUND]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_network_runs_at_any_batch(seed: int, tmp_path) -> None:
    model, samples = Network(seed), [1, 2, 3, 1][seed % 4]
    network = compile(model, model.inputs(samples))
    assert network.graph.apart, "its samples know nothing of each other"
    save(network, tmp_path / "net")
    again = load(tmp_path / "net", threads=2)
    for many in (samples, 1, 5):
        x = model.inputs(many, seed + many)
        with torch.no_grad():
            want, form = tree_flatten(model(*x))
        for made in (network(*x), again(*x)):
            got, same = tree_flatten(made)
            assert same == form and len(got) == len(want)
            for a, b in zip(got, want):
                if b is None:
                    assert a is None
                    continue
                error = float((a - b).abs().max() / b.abs().max().clamp(min=1e-3))
                assert a.shape == b.shape and a.dtype == b.dtype and error < CLOSE, f"{many} samples: off by {error}"
