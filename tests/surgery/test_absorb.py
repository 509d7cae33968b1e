"""Constants of removed channels, against the network in which only their scales are zero."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import prunus
from tests.tracing.networks import randomise

X = torch.randn(4, 3, 6, 6)
GONE = [1, 4, 5]


def shifted(model):
    """Some removed channels leave a constant behind, some do not (after a ReLU)."""
    with torch.no_grad():
        model[1].bias[GONE] = torch.tensor([0.7, -0.2, 0.4])
    return model


def scales_zero(model, norm):
    """The reference: scales of the removed channels at zero, shifts left as they are."""
    other = copy.deepcopy(model).double()
    with torch.no_grad():
        other.get_submodule(norm).weight[GONE] = 0
    return other


def build(kernel, padding, bias, norm_after, act):
    tail = [nn.Conv2d(8, 5, kernel, padding=padding, bias=bias)] + ([nn.BatchNorm2d(5)] if norm_after else [])
    return shifted(randomise(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), act, *tail)))


def cut(model):
    groups = prunus.trace(model, X)
    plan = prunus.Plan({"0": prunus.GroupPlan(8, tuple(i for i in range(8) if i not in GONE))})
    absorbed = prunus.absorb_(model, groups, plan)
    groups = prunus.trace(model, X)
    prunus.shrink_(model, groups, plan)
    return absorbed


@pytest.mark.parametrize("norm_after", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "act"), [(1, nn.ReLU()), (3, nn.Sigmoid()), (1, nn.Hardswish())])
def test_exact_where_the_kernel_sees_no_padding(kernel, bias, norm_after, act):
    torch.manual_seed(0)
    model = build(kernel, 0, bias, norm_after, act)
    expected = scales_zero(model, "1")(X.double())
    assert cut(model) == ("3.weight",)
    assert torch.allclose(model.double()(X.double()), expected, rtol=0, atol=1e-6)


def test_nothing_is_absorbed_where_padding_would_make_it_wrong():
    model = build(3, 1, True, False, nn.Sigmoid())
    bias = model[3].bias.detach().clone()
    assert cut(model) == ()
    assert torch.equal(model[3].bias, bias)


def test_a_linear_layer_behind_a_pooling_takes_it_up():
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    model = shifted(randomise(nn.Sequential(*layers)))
    expected = scales_zero(model, "1")(X.double())
    assert cut(model) == ("5.weight",)
    assert torch.allclose(model.double()(X.double()), expected, rtol=0, atol=1e-6)


def test_the_removed_units_are_silent_afterwards():
    model = build(1, 0, True, False, nn.ReLU())
    groups = prunus.trace(model, X)
    plan = prunus.Plan({"0": prunus.GroupPlan(8, (0, 2, 3, 6, 7))})
    prunus.absorb_(model, groups, plan)
    assert not model[1].bias[GONE].any() and not model[3].weight[:, GONE].any()


def test_a_budget_in_parameters_is_not_exceeded_by_new_biases():
    torch.manual_seed(0)
    model = build(1, 0, False, False, nn.Sigmoid())
    report = prunus.prune_(model, X, budget=prunus.Budget(params=0.6), criterion="bn-gamma", absorb=True)
    assert model[3].bias is None
    assert report.after["params"] <= 0.6 * report.before["params"]


class Twice(nn.Module):
    """A batch norm used twice, or an output of the model in front of it."""

    def __init__(self, returned):
        super().__init__()
        self.a, self.n, self.b = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1, bias=False)
        self.m, self.c, self.returned = nn.BatchNorm2d(5), nn.Conv2d(3, 5, 1), returned

    def forward(self, x):
        y = self.b(torch.sigmoid(self.n(self.a(x))))
        return (self.m(y), y) if self.returned else self.m(y) + self.m(self.c(x))


@pytest.mark.parametrize("returned", [True, False])
def test_a_mean_that_others_see_is_left_alone(returned):
    torch.manual_seed(0)
    model = randomise(Twice(returned))
    expected = scales_zero(model, "n")(X.double())
    groups = prunus.trace(model, X)
    plan = prunus.Plan({"a": prunus.GroupPlan(8, tuple(i for i in range(8) if i not in GONE))})
    prunus.absorb_(model, groups, plan)
    found = model.double()(X.double())
    for a, b in zip(found, expected) if returned else [(found, expected)]:
        assert torch.allclose(a, b, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tokens", [[0, 0], [1, 2]])  # equal when reversed; of equal mean when reversed
def test_data_is_not_taken_for_a_constant(tokens):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.b, self.c = nn.Embedding(10, 6), nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.c(self.b(self.e(x).mean(1)).relu())

    model = Tokens()
    bias = model.c.bias.detach().clone()
    groups = prunus.trace(model, torch.tensor([tokens]))
    assert prunus.absorb_(model, groups, prunus.Plan({"b": prunus.GroupPlan(8, (0, 1))})) == ()
    assert torch.equal(model.c.bias, bias)
