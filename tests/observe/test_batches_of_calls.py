"""Networks that are called in several ways: each batch of data is of the call that it fits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import prunus
from prunus.core.ways import call_of
from prunus.criteria import needed
from prunus.recovery.calibration import first, gather

DRAW = torch.Generator().manual_seed(0)
X, Y = torch.randn(2, 6, generator=DRAW), torch.randn(4, 5, generator=DRAW)  # twice as many in the second call
A, B, A2 = (
    {"x": torch.randn(4, 6, generator=DRAW)},
    {"x": torch.randn(7, 5, generator=DRAW), "way": "second"},
    {"x": torch.randn(5, 6, generator=DRAW)},
)
CALLS = [prunus.Inputs((X,)), prunus.Inputs((Y,), {"way": "second"})]


class Two(nn.Module):
    """A trunk, entered and left in two ways, each with a hidden layer of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(5, 8)
        self.trunk, self.inner = nn.Linear(8, 8), nn.Linear(8, 10)
        self.scores, self.boxes = nn.Linear(8, 3), nn.Linear(10, 3)

    def forward(self, x, way="first", labels=None):
        if way == "first":
            return self.scores(self.trunk(self.first(x).relu()).relu())
        return self.boxes(self.inner(self.trunk(self.second(x).relu())).relu())


def collected(kind, data, loss=None):
    model = Two()
    groups = prunus.trace(model, CALLS)
    return groups, prunus.collect(model, groups, data, [kind], loss).groups[kind]


def test_features_are_what_the_layers_of_each_call_read():
    model = Two()
    groups, found = collected("features", [B, A, A2])
    assert [g.id for g in groups] == ["first", "trunk", "inner"] and set(found) == {"first", "trunk", "inner"}
    with torch.no_grad():
        entered = [model.second(B["x"]).relu(), model.first(A["x"]).relu(), model.first(A2["x"]).relu()]
        left = [model.trunk(entered[0]), *(model.trunk(x).relu() for x in entered[1:])]
        inner = model.inner(left[0]).relu()
    assert torch.allclose(found["first"], torch.cat(entered).double())
    assert torch.allclose(found["trunk"], torch.cat(left).double())
    assert torch.allclose(found["inner"], inner.double())  # batches that do not meet it say nothing of it


def test_zeros_are_counted_where_the_unit_was_met():
    model = Two()
    _, found = collected("zeros", [A, B])
    with torch.no_grad():
        inner = model.inner(model.trunk(model.second(B["x"]).relu())).relu()
    assert torch.allclose(found["inner"], (inner == 0).double().mean(0))
    assert set(collected("zeros", [A])[1]) == {"first", "trunk"}
    assert set(collected("zeros", [B])[1]) == {"first", "trunk", "inner"}


def test_gates_are_of_the_batches_that_met_the_unit():
    model = Two()
    _, found = collected("gate", [A, B], lambda out, batch: out.square().sum(1))
    x = model.inner(model.trunk(model.second(B["x"]).relu())).relu().detach().requires_grad_()
    (slope,) = torch.autograd.grad(model.boxes(x).square().sum(), x)
    assert torch.allclose(found["inner"], x.detach() * slope, atol=1e-6) and len(found["trunk"]) == 11


def test_moments_are_of_the_layers_of_each_call():
    for mine, other, group, reader in ((B, A, "inner", (3, 10)), (A, B, "trunk", (3, 8))):
        _, found = collected("curved-moments", [mine, other])
        _, alone = collected("curved-moments", [mine])  # the same rows and labels are drawn
        both, one = ({tuple(c.weight.shape): c for c in of[group]}[reader] for of in (found, alone))
        assert torch.allclose(both.moment, one.moment) and torch.allclose(both.curvature, one.curvature)
    assert {tuple(c.weight.shape) for c in found["trunk"]} == {(3, 8), (10, 8)}


@pytest.mark.parametrize("criterion", ["taylor", "taylor-gate", "fisher", "thinet", "obs", "taylor-activation"])
def test_criteria_take_batches_of_every_call_with_labels(criterion):
    labels = torch.tensor([0, 1, 2, 0])
    data = [(prunus.Inputs(kwargs=A), labels), (prunus.Inputs((B["x"][:4],), {"way": "second"}), labels)]
    report = prunus.prune_(Two(), CALLS, criterion=criterion, data=data, budget=prunus.Budget(params=0.7))
    assert report.in_place and report.verified.max_relative_error < 1e-7 and not report.notes


def test_how_rows_lie_is_found_for_each_call():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.trunk = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x, way="first"):
            x = x.transpose(0, 1) if way == "second" else x  # samples in turns
            x = self.trunk(self.first(x).relu())
            return (x.transpose(0, 1) if way == "second" else x).mean(1)

    model, x = Turned(), torch.randn(3, 4, 6, generator=DRAW)
    calls = [prunus.Inputs((x[:2],)), prunus.Inputs((x[:2],), {"way": "second"})]
    groups = prunus.trace(model, calls)
    data = [{"x": x}, {"x": x, "way": "second"}]
    features = prunus.collect(model, groups, data, ["features"]).groups["features"]["first"]
    with torch.no_grad():
        assert torch.allclose(features, model.first(x).relu().mean(1).double().repeat(2, 1))


def test_what_fits_none_or_several_is_refused():
    model = Two()
    groups = prunus.trace(model, CALLS)
    need = needed("apoz", [A])
    for batch in ({"x": torch.zeros(4, 2, 6)}, {"x": X, "way": "third"}, {"way": "first"}):
        with pytest.raises(
            prunus.InputError, match=r"batch 1 of the data.* fits none of them: 1\. forward\(x: \(2, 6\)"
        ):
            prunus.collect(model, groups, [A, batch], need)
    with pytest.raises(prunus.InputError, match="'propagated' follows the network from end to end.* 2 ways"):
        prunus.collect(model, groups, [A, B], ["propagated"])
    assert prunus.collect(model, groups, [A], ["propagated"]).groups["propagated"]


class Shapes(nn.Module):
    """Goes by what it is given."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.last = nn.Linear(6, 8), nn.Embedding(6, 8), nn.Linear(8, 2)

    def forward(self, x, masks=None, times=1):
        x = self.b(x) if not x.is_floating_point() else self.a(x)
        x = x.relu() if masks is None else x * masks[0][:, None]
        return self.last(x.tanh() if times == 1 else x)


def test_a_batch_is_of_the_call_that_is_most_like_it():
    model, whole, masks = Shapes(), torch.zeros(2, dtype=torch.long), (torch.ones(2),)
    calls = [
        prunus.Inputs((X,)),
        prunus.Inputs((X,), {"masks": masks}),
        prunus.Inputs((X,), {"times": 2}),
        prunus.Inputs((torch.zeros(2, 3, dtype=torch.long),)),
        prunus.Inputs((torch.zeros(2, 3, 6),)),
    ]
    groups = prunus.trace(model, calls)

    def which(*args, **kwargs):
        return call_of(model, groups, prunus.Inputs(args, kwargs), "x")

    more = torch.zeros(9, 6)
    assert which(more) == which(x=more) == 0
    assert which(more, masks) == which(more, masks=[torch.ones(9)]) == 1
    assert which(more, times=2) == 2 and call_of(model, prunus.trace(model, [calls[2]] * 2), calls[2], "x") == 0
    assert which(torch.zeros(9, 3, dtype=torch.long)) == which(torch.zeros(9, 6, dtype=torch.long)) == 3
    assert which(torch.zeros(9, 3, 6)) == which(torch.zeros(9, 5, 6)) == 4
    with pytest.raises(prunus.InputError, match="fits none"):
        which(whole)
    with pytest.raises(prunus.InputError, match="times: 7.* fits 2 of them alike"):
        which(more, times=7)
    assert call_of(model, prunus.trace(model, X), prunus.Inputs((whole,)), "x") == 0  # of one call, nothing is asked


def test_several_that_fit_alike_are_refused():
    class Sizes(Two):
        def forward(self, x):
            return super().forward(x, "first" if x.shape[1] == 6 else "second")

    model = Sizes()
    groups = prunus.trace(model, [prunus.Inputs((X,)), prunus.Inputs((Y,))])
    assert call_of(model, groups, prunus.Inputs((torch.zeros(9, 5),)), "x") == 1  # by the sizes of a sample
    with pytest.raises(prunus.InputError, match=r"forward\(x: \(9, 7\)\), fits 2 of them alike"):
        call_of(model, groups, prunus.Inputs((torch.zeros(9, 7),)), "x")


def test_calibration_is_of_every_call():
    found = gather([A, B, A2], limit=6, calls=2)
    assert [one.batch for one in found.calls] == [6, 6] and found.calls[1].kwargs["way"] == "second"
    assert torch.equal(found.calls[0].kwargs["x"], torch.cat([A["x"], A2["x"]])[:6])
    assert [one.batch for one in gather([A, B, A2], calls=2).calls] == [9, 7]
    assert [one.batch for one in first(found, 2).calls] == [2, 2]
    with pytest.raises(prunus.InputError, match="batches are of 2 forms.* traced with 1 call:"):
        gather([A, B])
    with pytest.raises(prunus.InputError, match=r"different sizes, \[\(5,\), \(6,\)\]"):
        gather([A, {"x": Y}])


@pytest.mark.parametrize("repair", ["least-squares", "blocks"])
def test_layers_of_every_call_are_repaired(repair):
    model, errors = Two(), {}
    draw = torch.Generator().manual_seed(1)
    data = [{"x": torch.randn(200, 6, generator=draw)}, {"x": torch.randn(200, 5, generator=draw), "way": "second"}]
    for kind in (False, repair):
        cut = copy.deepcopy(model)
        prunus.prune_(cut, CALLS, budget=prunus.Budget(params=0.6), repair=kind, data=data if kind else None)
        with torch.no_grad():
            errors[kind] = [float((cut(**x) - model(**x)).square().mean()) for x in data]
    assert all(after < 0.8 * before for before, after in zip(errors[False], errors[repair])), errors
