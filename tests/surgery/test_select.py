"""Channel selections: only where a stream is shared, the identity until something is cut."""

from __future__ import annotations

import pytest
import torch

import prunus
from prunus.zoo import densenet_bc40, preresnet164, resnet20, vgg11
from tests.tracing.networks import randomise

X = torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize("factory", [resnet20, vgg11])
def test_networks_that_normalise_after_every_convolution_need_none(factory):
    assert prunus.select_(factory(), X) == ()


def test_a_pre_activation_resnet_selects_at_every_entrance():
    model = randomise(preresnet164())
    before = model(X)
    names = prunus.select_(model, X)
    assert len(names) == 3 * 18 + 1  # one per bottleneck and the last norm
    assert torch.allclose(model(X), before, atol=1e-5)
    assert prunus.select_(model, X) == ()


def test_the_block_is_narrowed_and_the_stream_is_not():
    model = randomise(densenet_bc40())
    prunus.prune_(model, X, budget=prunus.Budget(macs=0.7), criterion="bn-gamma", select=True)
    layer = model.block1.layer[3]
    assert layer.conv2.weight.shape[0] == 12  # what it adds to the stream is whole
    assert len(layer.bn1.weight) == len(layer.bn1.select) == layer.conv1.weight.shape[1] < 60
    assert torch.equal(layer.bn1.select, layer.bn1.select.sort().values)


def test_selections_left_whole_are_taken_out():
    model = randomise(densenet_bc40())
    prunus.select_(model, X)
    groups = prunus.trace(model, X)
    id = groups[3].id
    prunus.shrink_(model, groups, prunus.Plan({id: prunus.GroupPlan(groups[id].units, (0, 1, 2))}))
    selections = [n for n, _ in model.named_buffers() if n.endswith(".select")]
    assert len(selections) <= 1


def test_wrong_selection_is_noticed():
    """The proof covers the selection: other indices give another network."""
    model = randomise(densenet_bc40())
    prunus.prune_(model, X, budget=prunus.Budget(macs=0.7), criterion="bn-gamma", select=True)
    before = model(X)
    select = model.block1.layer[3].bn1.select
    select.copy_(select.flip(0))
    assert not torch.allclose(model(X), before, atol=1e-3)
