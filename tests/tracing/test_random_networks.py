"""Laws on random networks: any plan cuts in place, is proven, and costs what was foretold."""

from __future__ import annotations

import copy

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import prunus
from prunus.core.nested import tensors_in
from prunus.measure import macs, params
from tests.keeping import random_keep
from tests.tracing.networks import ENDS, STEPS, Random, randomise

networks = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 11)), min_size=1, max_size=7)


def zeroed_by_hand(model: torch.nn.Module, groups: prunus.Groups, keep: torch.Tensor) -> torch.nn.Module:
    """The original with removed units' parameters and consumers' columns at zero, by plain indexing."""
    model = copy.deepcopy(model).double()
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for group in groups:
            for unit in range(group.units):
                if not keep[group.offset + unit]:
                    for s in group.slices:
                        for i in s.index[unit].tolist():
                            tensors[s.name].select(s.dim, i).zero_()
    return model


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks, st.integers(1, 3), st.sampled_from(sorted(ENDS)), st.integers(0, 1000))
def test_any_plan_cuts_in_place_and_equals_the_silenced_original(steps, width, end, seed):
    torch.manual_seed(seed)
    model = randomise(Random(steps, 8 * width, end), seed)
    x = torch.randn(2, 3, 6, 6)
    groups = prunus.trace(model, x)
    keep = random_keep(groups, seed)
    plan = groups.plan(keep)
    expected = tensors_in(zeroed_by_hand(model, groups, keep)(x.double()))
    report = prunus.shrink_(model, groups, plan)
    found = tensors_in(model.double()(x.double()))
    assert len(found) == len(expected)
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(found, expected))
    assert params(model) == report.after["params"]
    assert macs(model, x.double()).total == report.after["macs"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks, st.integers(0, 1000))
def test_keeping_everything_changes_nothing(steps, seed):
    model = randomise(Random(steps, 8), seed)
    x = torch.randn(2, 3, 6, 6)
    before, state = model(x), copy.deepcopy(model.state_dict())
    groups = prunus.trace(model, x)
    prunus.shrink_(model, groups, groups.plan(torch.ones(groups.units, dtype=torch.bool)))
    assert torch.equal(model(x), before)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks, st.integers(0, 1000))
def test_two_cuts_compose_and_the_file_replays_both(steps, seed):
    torch.manual_seed(seed)
    fresh = Random(steps, 8)
    model = randomise(copy.deepcopy(fresh), seed)
    x = torch.randn(2, 3, 6, 6)
    for i in range(2):
        groups = prunus.trace(model, x)
        prunus.shrink_(model, groups, groups.plan(random_keep(groups, seed + i)))
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        prunus.save(model, f"{folder}/m.safetensors")
        loaded = prunus.load(f"{folder}/m.safetensors", lambda: fresh).eval()
    assert torch.equal(loaded(x), model(x))


def test_ordinary_networks_lose_nothing_to_caution():
    """Every hidden channel of a plain network can be cut: soundness is not bought by fixing everything."""
    model = Random([("conv", 1), ("norm", 0), ("act", 0), ("residual", 2), ("se", 0), ("concat", 3)], 8)
    groups = prunus.trace(model, torch.randn(1, 3, 6, 6))
    free = sum(group.units for group in groups)
    assert free == 8 + 8 + 12 + 4 + 16
    assert {f.what for f in groups.fixed} == {"head: 3 of 3 channels"}
