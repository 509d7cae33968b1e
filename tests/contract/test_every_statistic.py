"""What holds for every kind of statistic in the registry."""

import pytest
import torch

from prunus.observe import collect, collectors
from tests.hand_built import batches, residual

every = pytest.mark.parametrize("entry", list(collectors), ids=lambda entry: entry.name)


@every
def test_it_has_the_shape_of_its_parameter_and_is_the_same_twice(entry):
    model, groups = residual()
    model.train()
    first, second = (collect(model, groups, batches(), {entry.name}).kinds[entry.name] for _ in range(2))
    parameters = dict(model.named_parameters())
    assert first and all(value.shape == parameters[name].shape for name, value in first.items())
    assert all(torch.equal(value, second[name]) and value.isfinite().all() for name, value in first.items())


@every
def test_it_does_not_depend_on_how_samples_are_batched(entry):
    model, groups = residual()
    x, y = batches(1, 12)[0]
    whole = collect(model, groups, [(x, y)], {entry.name}).kinds[entry.name]
    split = collect(model, groups, [(x[:5], y[:5]), (x[5:], y[5:])], {entry.name}).kinds[entry.name]
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, rtol=1e-4, atol=1e-6)
