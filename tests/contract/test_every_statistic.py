"""What holds for every kind of statistic in the registry."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

from prunus.observe import Stats, collect, collectors
from tests.traced import batches, residual

every = pytest.mark.parametrize("entry", list(collectors), ids=lambda entry: entry.name)


def values(stats: Stats, kind: str) -> dict[str, list[torch.Tensor]]:
    """Every tensor of a kind, by parameter or group."""
    found = stats.kinds.get(kind) or stats.groups[kind]
    return {name: _tensors(value) for name, value in found.items()}


def _tensors(value):
    if isinstance(value, tuple):  # one entry a layer
        return [leaf for layer in value for leaf in vars(layer).values() if isinstance(leaf, torch.Tensor)]
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


@every
def test_it_is_keyed_by_what_it_says_and_is_the_same_twice(entry):
    model, groups = residual()
    model.train()
    first, second = (collect(model, groups, batches(), {entry.name}) for _ in range(2))
    parameters = dict(model.named_parameters())
    if entry.declares.get("of") == "group":
        assert set(first.groups[entry.name]) == {g.id for g in groups} and not first.kinds
    else:
        assert all(value.shape == parameters[name].shape for name, value in first.kinds[entry.name].items())
    again = values(second, entry.name)
    for name, tensors in values(first, entry.name).items():
        assert tensors and all(torch.equal(a, b) and a.isfinite().all() for a, b in zip(tensors, again[name]))


@every
def test_it_does_not_depend_on_how_samples_are_batched(entry):
    if entry.name.endswith("moments") or entry.name == "hutchinson":
        pytest.skip("rows, labels and probes are drawn batch by batch")
    model, groups = residual()
    x, y = batches(1, 12)[0]
    whole = values(collect(model, groups, [(x, y)], {entry.name}), entry.name)
    split = values(collect(model, groups, [(x[:5], y[:5]), (x[5:], y[5:])], {entry.name}), entry.name)
    for name, tensors in whole.items():
        for a, b in zip(tensors, split[name]):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6)
