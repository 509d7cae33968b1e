"""Curves of accuracy, group by group, what is allocated by them, and filters chosen over the inputs that stay."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.allocators.curves import Sensitivity, places
from prunus.core import Budget, InputError
from prunus.criteria import score
from tests.traced import batches, chain, residual


def of_output(model: nn.Module, reference: torch.Tensor, x: torch.Tensor) -> float:
    return -(model(x) - reference).abs().max().item()


@pytest.mark.parametrize(("network", "id"), [(chain, "conv1"), (residual, "a"), (residual, "stem")])
def test_the_curve_is_flat_up_to_the_zero_filters(network, id):
    model, groups = network(8, 8)
    dead = torch.tensor([1, 4, 6])
    for s in groups[id].with_role("norm_shift"):
        s.tensor.data.fill_(1.0)  # nothing else is dead behind a ReLU
    for s in groups[id].with_role("out", "bias", "norm_scale", "norm_shift"):
        s.tensor.data.index_fill_(s.dim, dead, 0)
    x = batches(1)[0][0]
    reference = model.eval()(x).detach()
    model.train()
    state = copy.deepcopy(model.state_dict())
    curve = prunus.sensitivity(
        model, groups, score(groups, "l1"), lambda m: of_output(m, reference, x), [n / 8 for n in range(1, 8)]
    )
    assert curve.whole == 0 and curve.values[id][:3] == (0, 0, 0) and curve.values[id][3] < 0
    assert model.training and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert curve.widest(0.0)[id] == 3 / 8
    scores = score(groups, "l1")
    plan = curve.plan(groups, scores, 0.0)
    assert set(plan.groups[id].kept) == set(range(8)) - set(dead.tolist())


def test_silenced_numbers_are_those_of_the_cut_network():
    model, groups = chain(8, 8)
    x = batches(1)[0][0]
    scores = score(groups, "l2")
    curve = prunus.sensitivity(model, groups, scores, lambda m: m(x).norm().item(), [0.5, 0.3])
    assert curve.fractions == (0.3, 0.5)
    for id in ("conv1", "conv2"):
        cut = copy.deepcopy(model)
        keep = torch.ones(groups.units, dtype=torch.bool)
        keep[groups[id].offset + scores[id].argsort()[:4]] = False
        prunus.shrink_(cut, groups.bind(cut), groups.plan(keep))
        assert curve.values[id][1] == pytest.approx(cut.eval()(x).norm().item(), rel=1e-5)


def test_the_network_is_put_back_when_evaluating_fails():
    model, groups = chain()
    state = copy.deepcopy(model.state_dict())
    calls = []

    def fails(m):
        calls.append(m)
        if len(calls) == 3:
            raise RuntimeError("no more")
        return 1.0

    with pytest.raises(RuntimeError, match="no more"):
        prunus.sensitivity(model, groups, score(groups, "l1"), fails)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    with pytest.raises(InputError, match="fractions="):
        prunus.sensitivity(model, groups, score(groups, "l1"), lambda m: 1.0, [0.5, 1.0])
    with pytest.raises(InputError, match="gave nan for the whole network"):
        prunus.sensitivity(model, groups, score(groups, "l1"), lambda m: float("nan"))


def test_all_groups_lose_the_same_and_those_that_do_not_mind_first():
    model, groups = chain(10, 10)
    steady = {g.id: torch.arange(10.0).double() for g in groups}
    curve = Sensitivity((0.2, 0.8), 1.0, {"conv1": (0.9, 0.3), "conv2": (1.0, 0.9)})
    ranking = curve.ranking(groups, steady)
    expected = torch.tensor([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.7, 0.7])
    torch.testing.assert_close(ranking["conv1"].float(), expected)
    assert ranking["conv2"][:2].max() < 1e-8 and ranking["conv2"][7].item() == pytest.approx(0.1)
    assert ranking["conv2"][9].item() == pytest.approx(0.7)  # nothing is known there: the worst
    plan = prunus.allocate(groups, ranking, Budget(params=0.35))
    assert len(plan.groups["conv1"].kept) > len(plan.groups["conv2"].kept)
    assert curve.widest(0.1) == {"conv1": 0.2, "conv2": 0.8}
    assert places(groups["conv1"], steady["conv1"].flip(0)).tolist() == list(range(10, 0, -1))


def test_the_greedy_norm_leaves_out_inputs_that_went():
    net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 4, bias=False), nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [9.0]]))  # the first goes
        net[1].weight.copy_(torch.tensor([[9.0, 0], [8, 1], [0, 5], [1, 3]]))
    groups = prunus.trace(net, torch.zeros(1, 1))
    scores = score(groups, "l1")
    kept = {
        name: prunus.allocate(groups, scores, Budget(params=0.4), allocator=name).groups
        for name in ("uniform", "greedy-l1")
    }
    assert kept["uniform"]["0"].kept == kept["greedy-l1"]["0"].kept == (1,)
    assert kept["uniform"]["1"].kept == (0, 1)  # norms 9, 9, 5, 4
    assert kept["greedy-l1"]["1"].kept == (2, 3)  # norms 0, 1, 5, 3


def test_on_handwritten_digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16, torch.from_numpy(labels).long()
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(net(x[:500]), y[:500]).backward()
        optimizer.step()

    def accuracy(model: nn.Module, rows: slice) -> float:
        return (model.eval()(x[rows]).argmax(1) == y[rows]).double().mean().item()

    groups = prunus.trace(net, x[:1])
    scores = score(groups, "l1")
    curve = prunus.sensitivity(net, groups, scores, lambda m: accuracy(m, slice(500, 1000)))
    assert curve.whole > 0.9 and all(values[-1] < curve.whole for values in curve.values.values())
    report = prunus.shrink_(net, groups, curve.plan(groups, scores, 0.05))
    assert report.after["params"] < report.before["params"]
    assert accuracy(net, slice(1000, None)) > 0.6
