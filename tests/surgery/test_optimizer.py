"""The optimizer after a cut: the network trains on as if the removed units were held at zero."""

from __future__ import annotations

import copy
import importlib
import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop, Rprop

import prunus
from prunus.surgery import slice_optimizer_
from tests.hand_built import batches, residual

STEPS, MORE = 4, 6


def two_rates(model):
    """Parameter groups with their own learning rate and decay, not in the order of the network."""
    parameters = list(model.parameters())[::-1]
    wide, narrow = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() < 2]
    return [{"params": wide, "weight_decay": 0.1}, {"params": narrow, "weight_decay": 0.0, "lr": 3e-3}]


OPTIMIZERS = {
    "sgd": lambda m: SGD(two_rates(m), lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda m: Adam(two_rates(m), lr=0.01, amsgrad=True),
    "adamw": lambda m: AdamW(two_rates(m), lr=0.01),
    "adamw-foreach": lambda m: AdamW(two_rates(m), lr=0.01, foreach=True),
    "rmsprop": lambda m: RMSprop(two_rates(m), lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda m: Adagrad(two_rates(m), lr=0.01, initial_accumulator_value=0.1),
    "adadelta": lambda m: Adadelta(two_rates(m), lr=0.5),
    "adamax": lambda m: Adamax(two_rates(m), lr=0.01),
    "nadam": lambda m: NAdam(two_rates(m), lr=0.01),
    "radam": lambda m: RAdam(two_rates(m), lr=0.01),
    "rprop": lambda m: Rprop(m.parameters(), lr=0.01),
}


class Sigmoids(nn.Module):
    """Silent units emit one half here: their consumers' columns have a gradient, and must be held at zero."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.b(self.a(x).sigmoid()).sigmoid().mean((2, 3)))


def network(kind):
    torch.manual_seed(0)
    model = residual(6, 8)[0] if kind == "residual" else Sigmoids()
    return model.double().train()


def train(model, optimizer, data, after=lambda: None):
    for x, y in data:
        optimizer.zero_grad()
        F.cross_entropy(model(x.double()), y).backward()
        optimizer.step()
        after()


def every_third_goes(groups):
    return prunus.Plan(
        {g.id: prunus.GroupPlan(g.units, tuple(i for i in range(g.units) if i % 3 != 1)) for g in groups}
    )


def masks_of(model, plan):
    """One where an element stays, from the plan's indices one by one."""
    out = {}
    for name, p in model.named_parameters():
        out[name] = torch.zeros_like(p)
        kept = plan.tensors[name].kept if name in plan.tensors else {}
        for index in itertools.product(*(kept.get(d, range(n)) for d, n in enumerate(p.shape))):
            out[name][index] = 1
    return out


def kept(tensor, cut):
    for dim, indices in cut.kept.items() if cut is not None else ():
        tensor = torch.stack([tensor.select(dim, i) for i in indices], dim)
    return tensor


@pytest.mark.parametrize("kind", ["residual", "sigmoids"])
@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_training_goes_on_as_if_the_removed_units_had_been_masked(name, kind):
    model, data = network(kind), batches(STEPS + MORE)
    optimizer = OPTIMIZERS[name](model)
    train(model, optimizer, data[:STEPS])
    masked, theirs = copy.deepcopy((model, optimizer))
    untouched = copy.deepcopy(optimizer.state_dict()["param_groups"])

    x = torch.zeros(1, 3, 6, 6).double()
    groups = prunus.trace(model, x)
    report = prunus.shrink_(model, groups, every_third_goes(groups), optimizer=optimizer)
    assert report.notes == () and len(report.plan.tensors) >= 5
    assert optimizer.state_dict()["param_groups"] == untouched
    train(model, optimizer, data[STEPS:])

    masks = masks_of(masked, report.plan)

    def mask():
        with torch.no_grad():
            for key, p in masked.named_parameters():
                p.mul_(masks[key])

    mask()
    for key, p in masked.named_parameters():
        for value in theirs.state[p].values():
            if isinstance(value, torch.Tensor) and value.shape == p.shape:
                value.mul_(masks[key])
    train(masked, theirs, data[STEPS:], mask)
    moved = 0
    for (key, p), q in zip(masked.named_parameters(), model.parameters(), strict=True):
        cut = report.plan.tensors.get(key)
        torch.testing.assert_close(q, kept(p, cut), rtol=0, atol=1e-10, msg=lambda text, key=key: f"{key}: {text}")
        for entry, value in theirs.state[p].items():
            if isinstance(value, torch.Tensor):
                value = kept(value, cut) if value.shape == p.shape else value
                torch.testing.assert_close(optimizer.state[q][entry], value, rtol=1e-8, atol=1e-10)
        moved += q.numel() < p.numel()
    assert moved >= 5


def state_of(model, optimizer):
    return {n: {k: copy.deepcopy(v) for k, v in optimizer.state[p].items()} for n, p in model.named_parameters()}


def same_state(a, b):
    return all(a[n].keys() == b[n].keys() and all(torch.equal(a[n][k], b[n][k]) for k in a[n]) for n in a)


def test_a_cut_that_fails_leaves_the_optimizer_as_it_was():
    model = network("residual")
    optimizer = OPTIMIZERS["adamw"](model)
    train(model, optimizer, batches(2))
    before = state_of(model, optimizer)
    groups = prunus.trace(model, torch.zeros(1, 3, 6, 6).double())
    wrong = tuple(
        replace(g, slices=tuple(replace(s, index=s.index.roll(1, 0)) if s.role == "in" else s for s in g.slices))
        for g in groups
    )
    with pytest.raises(prunus.VerificationError):
        prunus.shrink_(model, replace(groups, members=wrong), every_third_goes(groups), optimizer=optimizer)
    assert same_state(state_of(model, optimizer), before)
    train(model, optimizer, batches(1))


def test_a_state_that_cannot_follow_undoes_the_cut():
    class Stubborn(dict):
        def items(self):
            raise RuntimeError("no")

    model = network("sigmoids")
    optimizer = OPTIMIZERS["sgd"](model)
    train(model, optimizer, batches(1))
    shapes = {n: (p.shape, p.grad.shape) for n, p in model.named_parameters()}
    optimizer.state[model.fc.weight] = Stubborn(optimizer.state[model.fc.weight])
    first = optimizer.state[model.a.weight]["momentum_buffer"]
    groups = prunus.trace(model, torch.zeros(1, 3, 6, 6).double())
    with pytest.raises(RuntimeError, match="no"):
        prunus.shrink_(model, groups, every_third_goes(groups), optimizer=optimizer)
    assert {n: (p.shape, p.grad.shape) for n, p in model.named_parameters()} == shapes
    assert optimizer.state[model.a.weight]["momentum_buffer"] is first and prunus.plan_of(model) is None


def test_a_rewritten_network_takes_over_groups_and_state_by_name():
    model, data = network("residual"), batches(STEPS + MORE)
    optimizer = OPTIMIZERS["adamw"](model)
    train(model, optimizer, data[:STEPS])
    was, theirs = copy.deepcopy((model, optimizer))
    groups = prunus.trace(model, torch.zeros(1, 3, 6, 6).double())
    report = prunus.shrink_(model, groups, every_third_goes(groups), optimizer=optimizer)
    rewritten = copy.deepcopy(model)  # other parameters of the same names, already cut
    assert slice_optimizer_([theirs], rewritten, report.plan, was=was) == ()
    ours = {id(p): n for n, p in rewritten.named_parameters()}
    old = {id(p): n for n, p in model.named_parameters()}
    pairs = ((ours, theirs), (old, optimizer))
    names = [[[table[id(p)] for p in g["params"]] for g in o.param_groups] for table, o in pairs]
    assert names[0] == names[1] and len(theirs.state) == len(optimizer.state)
    for m, o in ((model, optimizer), (rewritten, theirs)):
        train(m, o, data[STEPS:])
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), rewritten.parameters(), strict=True))
    smaller = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(prunus.InputError, match="has no parameter 'fc.weight'"):
        slice_optimizer_([theirs], smaller, report.plan, was=rewritten)


def one_tensor(shape, keep, state):
    """An optimizer with a made-up state of one parameter, after its cut."""
    model = nn.Module()
    model.w = nn.Parameter(torch.randn(shape))
    optimizer = SGD(model.parameters(), lr=0.1)
    optimizer.state[model.w] = dict(state)
    cut = prunus.core.TensorPlan(tuple(shape), keep)
    model.w = nn.Parameter(model.w[:0])  # only the plan tells the old shape
    optimizer.param_groups[0]["params"] = [model.w]
    optimizer.state = {model.w: next(iter(optimizer.state.values()))}
    notes = slice_optimizer_([optimizer], model, prunus.Plan(tensors={"w": cut}))
    return optimizer.state.get(model.w), notes


def test_factored_statistics_follow_along_the_dimensions_they_have():
    state = {
        "row": torch.arange(4.0),
        "col": torch.arange(3.0),
        "row_kept_dim": torch.arange(4.0).reshape(4, 1),
        "col_kept_dim": torch.arange(3.0).reshape(1, 3),
        "history": [torch.arange(12.0).reshape(4, 3), torch.tensor(7.0)],
        "step": torch.tensor(9.0),
        "count": 5,
    }
    after, notes = one_tensor((4, 3), {0: (1, 3), 1: (0, 2)}, state)
    assert notes == ()
    assert after["row"].tolist() == [1, 3] and after["col"].tolist() == [0, 2]
    assert after["row_kept_dim"].tolist() == [[1], [3]] and after["col_kept_dim"].tolist() == [[0, 2]]
    assert after["history"][0].tolist() == [[3, 5], [9, 11]] and float(after["history"][1]) == 7
    assert float(after["step"]) == 9 and after["count"] == 5
    same, notes = one_tensor((3, 3), {0: (0, 1), 1: (0, 1)}, {"row": torch.arange(3.0)})
    assert same["row"].tolist() == [0, 1] and notes == ()


@pytest.mark.parametrize("statistic", [torch.zeros(3), torch.zeros(2, 5), torch.zeros(9, 9)])
def test_a_state_whose_shape_tells_nothing_is_dropped_with_a_note(statistic):
    after, notes = one_tensor((3, 3), {0: (0, 1)}, {"moment": torch.zeros(3, 3), "odd": statistic})
    assert after is None
    (note,) = notes
    assert "'w' was dropped" in note and f"'odd' has the shape {tuple(statistic.shape)}" in note


def test_adafactor_goes_on():
    model = network("residual")
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    train(model, optimizer, batches(2))
    groups = prunus.trace(model, torch.zeros(1, 3, 6, 6).double())
    rows = optimizer.state[model.a.weight]["row_var"].clone()  # (out, in, 3, 1): squares summed over the last
    report = prunus.shrink_(model, groups, every_third_goes(groups), optimizer=optimizer)
    assert report.notes == ()
    assert torch.equal(optimizer.state[model.a.weight]["row_var"], kept(rows, report.plan.tensors["a.weight"]))
    train(model, optimizer, batches(2))


def test_what_cannot_follow_is_refused_before_anything_is_cut():
    model = network("residual")
    groups = prunus.trace(model, torch.zeros(1, 3, 6, 6).double())
    shapes = [p.shape for p in model.parameters()]
    copied = SGD(copy.deepcopy(model).parameters(), lr=0.1)
    part = SGD([p for n, p in model.named_parameters() if n not in ("a.weight", "bn_a.bias")], lr=0.1)
    rest = SGD([model.a.weight, model.bn_a.bias], lr=0.1)
    for optimizer, text in (
        (copied, r"does not hold 10 of the 10 trainable .* 'stem.weight'"),
        (part, r"does not hold 2 of the 10 .*: 'a.weight', 'bn_a.bias'\. Give"),
        ([], "expected a torch.optim.Optimizer, or a list"),
        (torch.optim.LBFGS(model.parameters()), "one flat history"),
        (model, "a Residual module.: expected a torch.optim.Optimizer"),
    ):
        with pytest.raises(prunus.InputError, match=text):
            prunus.shrink_(model, groups, every_third_goes(groups), optimizer=optimizer)
    assert [p.shape for p in model.parameters()] == shapes
    prunus.shrink_(model, groups, every_third_goes(groups), optimizer=[part, rest])
    frozen = network("residual")
    frozen.a.requires_grad_(False)
    frozen.bn_a.requires_grad_(False)
    groups = prunus.trace(frozen, torch.zeros(1, 3, 6, 6).double())
    trained = SGD([p for p in frozen.parameters() if p.requires_grad], lr=0.1)
    prunus.shrink_(frozen, groups, every_third_goes(groups), optimizer=trained)
    train(frozen, trained, batches(1))


def test_a_bias_that_took_up_a_constant_is_trained_with_its_weight():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Conv2d(4, 2, 1, bias=False)).double()
    x = torch.randn(2, 3, 4, 4).double()
    optimizer = SGD(two_rates(model), lr=0.1, momentum=0.9)
    model(x).sum().backward()
    optimizer.step()
    report = prunus.prune_(model, x, budget=prunus.Budget(macs=0.6), absorb=True, optimizer=optimizer)
    bias = model[3].bias
    assert report.after["params"] < report.before["params"] and bias is not None
    assert [any(p is bias for p in g["params"]) for g in optimizer.param_groups] == [True, False]
    before = bias.detach().clone()
    model(x).sum().backward()
    optimizer.step()
    assert not torch.equal(bias, before)


def test_one_line_in_the_middle_of_training():
    model, data = network("residual"), batches(STEPS + MORE)
    optimizer = OPTIMIZERS["adam"](model)
    train(model, optimizer, data[:STEPS])
    rates = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    report = prunus.prune_(model, torch.zeros(1, 3, 6, 6).double(), budget=prunus.Budget(macs=0.5), optimizer=optimizer)
    train(model, optimizer, data[STEPS:])
    rates.step()
    assert report.after["macs"] <= 0.5 * report.before["macs"]
    assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in model.parameters())
    assert all(float(optimizer.state[p]["step"]) == STEPS + MORE for p in model.parameters())


def test_adafactor_of_transformers_goes_on():
    pytest.importorskip("transformers", reason="transformers is not installed")
    importlib.import_module("prunus.core.torchvision_ops").declare_torchvision_operators()
    from transformers.optimization import Adafactor

    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = Adafactor(model.parameters(), lr=0.01, relative_step=False, scale_parameter=False)
    x = torch.randn(4, 3)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    groups = prunus.trace(model, x)
    rows = optimizer.state[model[0].weight]["exp_avg_sq_row"].clone()  # (out,)
    report = prunus.shrink_(model, groups, every_third_goes(groups), optimizer=optimizer)
    assert report.notes == ()
    assert torch.equal(optimizer.state[model[0].weight]["exp_avg_sq_row"], rows[[0, 2, 3, 5, 6]])
    model(x).square().sum().backward()
    optimizer.step()
