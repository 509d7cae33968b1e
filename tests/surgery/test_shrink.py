"""The cut itself: what moves, what stays, what is undone."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

import prunus
from prunus.surgery.agreement import relative_error
from tests.tracing.networks import Random, randomise

X = torch.randn(2, 3, 8, 8)


def net():
    torch.manual_seed(0)
    return randomise(Random([("norm", 0), ("conv", 1), ("norm", 0), ("residual", 2)], 8))


def half(groups):
    return prunus.Plan({g.id: prunus.GroupPlan(g.units, tuple(range(0, g.units, 2))) for g in groups})


def test_parameters_keep_their_identity_and_gradients_are_cut():
    model = net()
    parameters = dict(model.named_parameters())
    model(X).sum().backward()
    grad = model.stem.weight.grad.clone()
    groups = prunus.trace(model, X)
    prunus.shrink_(model, groups, half(groups))
    assert all(p is parameters[n] for n, p in model.named_parameters())
    assert torch.equal(model.stem.weight.grad, grad[::2])
    assert model.layers[0].num_features == 4 and model.stem.out_channels == 4
    model(X).sum().backward()


def test_memory_format_is_kept():
    model = net().to(memory_format=torch.channels_last)
    groups = prunus.trace(model, X)
    prunus.shrink_(model, groups, half(groups))
    assert model.layers[3][2].weight.is_contiguous(memory_format=torch.channels_last)


def test_groups_are_void_after_a_cut():
    model = net()
    groups = prunus.trace(model, X)
    plan = half(groups)
    prunus.shrink_(model, groups, plan)
    with pytest.raises(prunus.InputError, match="Trace the model again"):
        prunus.shrink_(model, groups, plan)


def test_an_emptied_group_is_refused():
    model = net()
    groups = prunus.trace(model, X)
    with pytest.raises(prunus.InputError, match="keeps no unit of group 'stem'"):
        prunus.shrink_(model, groups, prunus.Plan({"stem": prunus.GroupPlan(8, ())}))


def test_wrong_coupling_is_found_named_and_undone():
    """Break the groups on purpose: shift one consumer's columns by one."""
    model = net()
    state = copy.deepcopy(model.state_dict())
    groups = prunus.trace(model, X)
    broken = []
    for group in groups:
        slices = [
            replace(s, index=s.index.roll(1, 0)) if s.name == "layers.1.weight" and s.dim == 1 else s
            for s in group.slices
        ]
        broken.append(replace(group, slices=tuple(slices)))
    with pytest.raises(prunus.VerificationError, match="Groups that fail when cut alone: 'stem'"):
        prunus.shrink_(model, replace(groups, members=tuple(broken)), half(groups))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert prunus.plan_of(model) is None and model.stem.out_channels == 8


def test_wrong_axes_are_found():
    """Break the cut on purpose: keep other rows of the running mean than of the weights."""
    model = net()
    groups = prunus.trace(model, X)
    axis = groups.tensors["layers.0.running_mean"].axes[0]
    axes = (*groups.axes, groups.axes[axis].flip(0))
    entry = replace(groups.tensors["layers.0.running_mean"], axes=(len(axes) - 1,))
    broken = replace(groups, axes=axes, tensors={**groups.tensors, "layers.0.running_mean": entry})
    with pytest.raises(prunus.VerificationError):
        prunus.shrink_(model, broken, prunus.Plan({"stem": prunus.GroupPlan(8, (0, 1, 2))}))


def test_proof_is_nan_safe_and_refuses_to_compare_nothing():
    assert relative_error(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")
    assert relative_error(torch.ones(2), torch.ones(3)) == float("inf")
    model = nn.Sequential(net(), nn.Threshold(1e9, 0.0))
    groups = prunus.trace(model, X)
    with pytest.raises(prunus.VerificationError, match="nothing can be proven"):
        prunus.shrink_(model, groups, half(groups))
    assert prunus.shrink_(model, groups, half(groups), verify=False).verified is None


def test_half_precision_models_are_cut():
    model = net().half()
    groups = prunus.trace(model, X.half())
    report = prunus.shrink_(model, groups, half(groups))
    assert report.verified.max_relative_error < 1e-7 and model.stem.weight.dtype == torch.float16


def test_a_network_that_noise_does_not_suit_is_proven_on_the_example():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.b(self.a(x.sqrt()))

    model = Root()
    groups = prunus.trace(model, X.abs())
    assert prunus.shrink_(model, groups, half(groups)).verified.max_relative_error < 1e-7


def test_a_cut_of_a_network_with_a_new_head_is_of_what_is_there_now():
    model = net()
    groups = prunus.trace(model, X)
    prunus.shrink_(model, groups, half(groups))
    model.head = nn.Linear(64, 5)
    groups = prunus.trace(model, X)
    prunus.shrink_(model, groups, half(groups))
    plan = prunus.plan_of(model)
    assert plan.tensors["head.weight"].shape == (5, 64) and plan.tensors["stem.weight"].left[0] == 8 // 4


def test_a_loss_that_is_still_alive_does_not_hold_the_old_shapes():
    """A graph keeps the gradient accumulators of its parameters, and those keep a shape."""
    model = net()
    loss = model(X).sum()
    loss.backward()
    groups = prunus.trace(model, X)
    prunus.shrink_(model, groups, half(groups))
    model.zero_grad()
    model(X).sum().backward()
    assert model.stem.weight.grad.shape == model.stem.weight.shape == (4, 3, 3, 3)
    assert loss.grad_fn is not None


def test_what_layers_print_follows_and_other_numbers_of_these_names_stay():
    class Own(nn.Linear):
        num_features = 5

        def forward(self, x):
            return super().forward(x) * self.num_features

    net = nn.Sequential(nn.Embedding(5, 8), nn.GroupNorm(1, 8), Own(8, 6), nn.Linear(6, 2))
    groups = prunus.trace(net, torch.tensor([0, 3]))
    prunus.shrink_(net, groups, groups.plan(torch.arange(groups.units) % 2 == 0))
    assert (net[0].embedding_dim, net[1].num_channels) == (4, 4)
    assert (net[2].in_features, net[2].out_features, net[2].num_features) == (4, 3, 5)
