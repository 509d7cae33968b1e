"""prune_ against its own lines retyped, on networks that are really traced and cut."""

import copy

import pytest
import torch

import prunus
from prunus import Budget, BudgetError, InputError, UnknownNameError
from prunus.criteria import criteria, criterion
from prunus.measure import macs, params
from prunus.zoo import preresnet164, resnet20
from tests.hand_built import Chain, batches, chain

X = torch.zeros(1, 3, 6, 6)


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["l1", "l2", "bn-gamma", "random"])
@pytest.mark.parametrize("allocator", ["global", "uniform"])
def test_it_is_the_five_verbs(name, allocator):
    (model, _), (retyped, _) = chain(16, 24), chain(16, 24)
    report = prunus.prune_(model, X, criterion=name, allocator=allocator, budget=Budget(macs=0.5), seed=7, round_to=2)
    groups = prunus.trace(retyped, X)
    scores = prunus.score(groups, name, seed=7)
    plan = prunus.allocate(groups, scores, Budget(macs=0.5), allocator=allocator, round_to=2)
    prunus.shrink_(retyped, groups, plan)
    assert report.model is model and report.plan.groups == plan.groups and same(model, retyped)
    assert report.verified.max_relative_error < 1e-7
    assert report.after["macs"] <= 0.5 * report.before["macs"]
    assert all(len(g.kept) % 2 == 0 for g in plan.groups.values())


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("name", ["l2", "bn-gamma"])
def test_the_cost_of_a_real_network_is_what_was_planned(kind, name):
    model = resnet20()
    x = torch.zeros(1, 3, 32, 32)
    before = {"macs": macs(model, x).total, "params": params(model)}
    report = prunus.prune_(model, x, criterion=name, budget=Budget(**{kind: 0.6}))
    after = {"macs": macs(model, x).total, "params": params(model)}
    assert report.before == before and report.after == after
    assert 0.55 * before[kind] < after[kind] <= 0.6 * before[kind]


def test_hand_built_groups_are_those_that_tracing_finds():
    model, by_hand = chain()
    traced = prunus.trace(model, X)
    assert [g.units for g in traced] == [g.units for g in by_hand] and traced.costs() == by_hand.costs()
    for name in ("l1", "l2", "bn-gamma"):
        pairs = zip(prunus.score(traced, name).values(), prunus.score(by_hand, name).values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_a_full_budget_is_the_identity():
    model, _ = chain()
    before = copy.deepcopy(model)
    report = prunus.prune_(model, X, budget=Budget(macs=1.0))
    assert report.plan.identity and same(model, before) and report.before == report.after


def test_frozen_and_chosen_groups():
    model, _ = chain(16, 24)
    prunus.prune_(model, X, budget=Budget(macs=0.8), freeze="conv1")
    assert model.conv1.out_channels == 16 and model.conv2.out_channels < 24
    model, _ = chain(16, 24)
    prunus.prune_(model, X, budget=Budget(macs=0.8), only=[model.conv1])
    assert model.conv1.out_channels < 16 and model.conv2.out_channels == 24


def test_groups_that_the_criterion_cannot_score_are_said():
    class Bare(Chain):
        def forward(self, x):
            return self.fc(self.conv2(self.bn1(self.conv1(x)).relu()).mean((2, 3)))

    model = Bare(16, 24)
    del model.bn2
    report = prunus.prune_(model, X, criterion="bn-gamma", budget=Budget(macs=0.8))
    assert model.conv2.out_channels == 24 and model.conv1.out_channels < 16
    (said,) = [fixed for fixed in report.left_alone if "bn-gamma" in fixed.why]
    assert said.what == [g for g, plan in report.plan.groups.items() if plan.units == 24][0]


def test_a_budget_out_of_reach_changes_nothing():
    model = preresnet164()
    names, before = list(model.state_dict()), copy.deepcopy(model)
    with pytest.raises(BudgetError, match="the least reachable is"):
        prunus.prune_(model, torch.zeros(1, 3, 32, 32), criterion="bn-gamma", budget=Budget(macs=1), select=True)
    assert list(model.state_dict()) == names and same(model, before)
    with pytest.raises(UnknownNameError, match="Did you mean 'bn-gamma'"):
        prunus.prune_(model, torch.zeros(1, 3, 32, 32), criterion="bn-gama", budget=Budget(macs=0.5), select=True)
    assert list(model.state_dict()) == names


@pytest.fixture
def taylor():
    """A criterion of gradients, registered for one test."""

    @criterion("taylor-for-a-test", needs={"grad"}, roles={"norm_scale", "norm_shift"}, finish="square")
    def call(s):
        return s.weight * s.grad

    yield call
    del criteria._entries["taylor-for-a-test"]


def test_a_criterion_that_looks_at_data(taylor):
    model, _ = chain(16, 24)
    expected, _ = chain(16, 24)
    with pytest.raises(InputError, match="looks at data .grad.: give data="):
        prunus.prune_(model, X, criterion=taylor, budget=Budget(macs=0.5))
    prunus.prune_(model, X, criterion=taylor, budget=Budget(macs=0.5), data=batches())
    groups = prunus.trace(expected, X)
    scores = prunus.score(groups, taylor, prunus.collect(expected, groups, batches(), {"grad"}))
    prunus.shrink_(expected, groups, prunus.allocate(groups, scores, Budget(macs=0.5)))
    assert same(model, expected) and all(p.grad is None for p in model.parameters())


def test_absorbing_keeps_the_constants_of_silent_channels():
    class Pointwise(Chain):
        def __init__(self):
            super().__init__(8, 6)
            self.conv2 = torch.nn.Conv2d(8, 6, 1, bias=False)

    torch.manual_seed(0)
    model = Pointwise().eval()
    torch.nn.init.uniform_(model.bn1.weight, 0.5, 1.0)
    torch.nn.init.constant_(model.bn1.bias, 0.7)
    model.bn1.weight.data[:3] = 0.0  # three channels that always say relu(0.7)
    x = torch.randn(2, 3, 6, 6)
    expected, dropped = model(x), copy.deepcopy(model)
    budget = Budget(macs=5 * 36 * (27 + 6) + 30)  # five channels, their consumer, and the classifier
    prunus.prune_(model, X, criterion="bn-gamma", budget=budget, only="conv1", absorb=True)
    prunus.prune_(dropped, X, criterion="bn-gamma", budget=budget, only="conv1")
    assert model.conv1.out_channels == dropped.conv1.out_channels == 5
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(dropped(x), expected, rtol=1e-2, atol=1e-2)
