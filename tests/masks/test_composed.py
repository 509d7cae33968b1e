"""Masks of weights together with cut channels, scaled gradients and accumulation."""

import pytest
import torch
from torch import nn

import prunus
from prunus.masks import RULES, MaskPruner, Method


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(64, 4))


def train(model, optimizer, steps, scale=None, bad=()):
    for t in range(steps):
        g = torch.Generator().manual_seed(t)
        x, y = torch.randn(8, 3, 6, 6, generator=g), torch.randint(0, 4, (8,), generator=g)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        (loss if scale is None else scale.scale(loss)).backward()
        if t in bad:
            model[0].weight.grad[0] = torch.inf
        optimizer.step() if scale is None else (scale.step(optimizer), scale.update())


@pytest.mark.parametrize("trained", [False, True])
def test_channels_are_cut_from_a_masked_network_and_the_rest_stays_masked(trained):
    model = network()
    groups, optimizer = prunus.tensors(model), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if trained:
        pruner = MaskPruner(model, groups, "rigl", density=0.3, steps=6, every=2)
        pruner.attach(optimizer)
        train(model, optimizer, 6)
        pruner.finish_()
    else:
        prunus.mask_(model, groups, prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(density=0.3)))
    report = prunus.prune_(
        model, torch.zeros(1, 3, 6, 6), budget=prunus.Budget(macs=0.5), optimizer=optimizer if trained else None
    )
    assert report.in_place and report.verified.max_relative_error <= 1e-7
    before = {n: p.detach() == 0 for n, p in model.named_parameters() if p.dim() > 1}
    assert sum(bool(zero.any()) for zero in before.values()) >= 2 and model[0].out_channels < 16
    optimizer = optimizer if trained else torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    train(model, optimizer, 3)
    for n, p in model.named_parameters():
        if n in before:
            assert (p[before[n]] == 0).all() and (p[~before[n]] != 0).all()


def test_weights_of_a_cut_network_are_masked():
    model = network()
    prunus.prune_(model, torch.zeros(1, 3, 6, 6), budget=prunus.Budget(macs=0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = MaskPruner(model, prunus.tensors(model), "set", density=0.25, steps=4, every=1)
    pruner.attach(optimizer)
    train(model, optimizer, 4)
    assert pruner.finish_().density <= 0.25


@pytest.mark.parametrize("rule", ["hard", "feedback"])
def test_a_step_that_a_scaler_skips_changes_nothing(rule):
    """Scaled gradients, and one that is infinite: the same masks as in a loop without that step."""
    found = []
    for bad in ((), (1,)):
        model = network()
        groups, optimizer = prunus.tensors(model), torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        plan = prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(density=0.3))
        pruner = MaskPruner(model, groups, Method(rule=RULES[rule]), density=0.3, steps=4, plan=plan)
        pruner.attach(optimizer)
        scale = torch.amp.GradScaler("cpu", init_scale=256.0)
        train(model, optimizer, 2, scale, bad)
        found.append((pruner.step, {n: p.detach().clone() for n, p in model.named_parameters()}))
        assert all((p[~pruner.covered.masks[n]] == 0).all() for n, p in pruner.covered.parameters.items())
    assert (found[0][0], found[1][0]) == (2, 1)
    assert all(p.isfinite().all() for p in found[1][1].values())


def test_accumulated_gradients_are_dense_until_the_step():
    """RigL sees the sum of the gradients of several backward passes."""
    model = network()
    groups, optimizer = prunus.tensors(model), torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    method = Method(start="uniform", watch=lambda m: seen.append({id: g.clone() for id, g in m.grads.items()}))
    pruner = MaskPruner(model, groups, method, density=0.3, steps=4)
    pruner.attach(optimizer)
    x, y = torch.randn(8, 3, 6, 6), torch.arange(8) % 4
    for half in (slice(0, 4), slice(4, 8)):
        (nn.functional.cross_entropy(model(x[half]), y[half]) / 2).backward()
    dense = {n: p.grad.clone() for n, p in model.named_parameters()}
    optimizer.step()
    for n, g in seen[0].items():
        assert torch.equal(g, dense[n]) and (g[~pruner.covered.masks[n]] != 0).any()


@pytest.mark.parametrize("name", ["rigl", "dpf"])
def test_compiled_and_wrapped_networks_are_their_inside(name):
    model = network()
    wrapped = nn.DataParallel(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    pruner = MaskPruner(wrapped, prunus.tensors(model), name, density=0.3, steps=4, every=2)
    pruner.attach(optimizer)
    train(model, optimizer, 4)
    assert pruner.finish_().model is model
