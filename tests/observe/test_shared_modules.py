"""What is computed with other tensors in place of a network's own leaves no trace, in modules of several names too."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import prunus
from prunus.core import Inputs
from prunus.core.running import with_tensors
from prunus.masks import at_init, collapse


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("sharing", ["fine", "coarse"])
def test_the_flow_leaves_a_shared_basis_as_it_was(sharing):
    net, x = network(), torch.ones(1, 3, 8, 8)
    prunus.interspace_(net, sharing=sharing)
    groups = prunus.tensors(net)
    before = {name: (p, p.detach().clone()) for name, p in net.named_parameters(remove_duplicate=False)}
    plan = at_init(net, groups, "synflow", density=0.2, rounds=3, data=[x])
    assert not collapse(net, groups, plan, [x])
    after = dict(net.named_parameters(remove_duplicate=False))
    assert all(after[name] is p and torch.equal(after[name], value) for name, (p, value) in before.items())
    assert net(x).dtype == torch.float32


def test_the_flow_through_a_module_of_two_names_is_that_through_two_modules_of_the_same_weight():
    torch.manual_seed(1)
    layer = nn.Linear(3, 3, bias=False)
    twice = nn.Sequential(nn.Linear(2, 3, bias=False), layer, layer)
    groups = prunus.tensors(twice)
    flow = prunus.collect(twice, groups, [torch.ones(1, 2)], {"flow"}).kinds["flow"]
    first, w = (p.detach().double().abs() for p in (twice[0].weight, layer.weight))
    ones, h = torch.ones(3, dtype=torch.float64), first.sum(1)
    torch.testing.assert_close(flow["1.weight"], torch.outer(w.t() @ ones, h) + torch.outer(ones, w @ h))
    assert isinstance(layer.weight, nn.Parameter) and layer.weight.dtype == torch.float32


def test_what_is_given_is_taken_away_again_where_forward_fails():
    net = network()
    weight = net[0].weight
    with pytest.raises(RuntimeError, match="weight"):
        with_tensors(net, {"0.weight": torch.zeros(1), "unknown": torch.ones(1)}, Inputs.of(torch.ones(1, 3, 8, 8)))
    assert net[0].weight is weight
