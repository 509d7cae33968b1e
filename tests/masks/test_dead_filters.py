"""Filters that are masked as a whole: what their gradients may do, and that a layer that is lost is named."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.core import Mask, Plan
from prunus.masks import RULES, MaskPruner, Method


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, bias=False)]
    net = nn.Sequential(*layers, nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 4)).double()
    nn.init.constant_(net[1].bias, 0.1)  # a constant that a gradient comes back from
    return net


def fed_back(net: nn.Module, lr: float) -> MaskPruner:
    """Feedback under a mask without filter 2 of the first convolution, and half of filter 0."""
    groups = prunus.tensors(net, only="0.weight")
    keep = torch.ones_like(net[0].weight, dtype=torch.bool)
    keep[2], keep[0, 0] = False, False
    plan = Plan(masks={"0.weight": Mask.of(keep)})
    pruner = MaskPruner(net, groups, Method(rule=RULES["feedback"]), density=0.9, steps=9, plan=plan)
    pruner.attach(torch.optim.SGD(net.parameters(), lr=lr))
    return pruner


def step(net: nn.Module, pruner: MaskPruner) -> torch.Tensor:
    x, y = torch.randn(16, 2, 8, 8, dtype=torch.float64), torch.randint(0, 4, (16,))
    net.zero_grad()
    F.cross_entropy(net(x), y).backward()
    slope = net[0].weight.grad.clone()
    pruner._optimizers[0].step()
    return slope


def test_a_dead_filter_moves_as_far_as_the_others_on_average_and_those_by_their_gradient():
    net = network()
    pruner = fed_back(net, lr=0.1)
    before = pruner.covered.dense["0.weight"].clone()
    slope = step(net, pruner)
    lengths = slope.flatten(1).norm(dim=1)
    alive = torch.arange(6) != 2
    assert lengths[2] > 10 * lengths[alive].max()  # the norm behind it has divided by the root of its epsilon
    moved = (before - pruner.covered.dense["0.weight"]) / 0.1
    torch.testing.assert_close(moved[alive], slope[alive])
    torch.testing.assert_close(moved[2], slope[2] * lengths[alive].mean() / lengths[2])


def test_filters_that_are_left_are_not_shortened():
    net = network()
    pruner = fed_back(net, lr=0.1)
    with torch.no_grad():
        net[0].weight[2] = 1e-3  # seen by forward, and so not dead, however small
    net.zero_grad()
    net(torch.randn(16, 2, 8, 8, dtype=torch.float64)).square().mean().backward()
    slope = net[0].weight.grad.clone()
    pruner.covered.calm_()
    assert torch.equal(slope, net[0].weight.grad)


def test_a_layer_that_a_method_empties_is_named():
    def noted(allocator: str) -> tuple[str, ...]:
        net = network()
        with torch.no_grad():
            net[3].weight *= 1e-3
        pruner = MaskPruner(net, prunus.tensors(net), "gmp", density=0.1, steps=4, every=1, allocator=allocator)
        pruner.attach(torch.optim.SGD(net.parameters(), lr=1e-6))
        for _ in range(4):
            step(net, pruner)
        return pruner.finish_().notes

    assert "layer collapse: 1 tensors are down to their last unit (first: '3.weight')" in noted("global")[0]
    assert noted("uniform") == ()
