"""Networks that are called in several ways: a list of inputs, one a call."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import prunus
from prunus.measure import macs
from tests.keeping import random_keep

X, Y = torch.randn(2, 6), torch.randn(2, 5)


class Two(nn.Module):
    """One trunk, entered and left in two ways; only the second ties the trunk's width to what comes in."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 16), nn.Linear(5, 16)
        self.trunk, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)
        self.scores, self.boxes = nn.Linear(16, 3), nn.Linear(16, 4)

    def forward(self, x, way="first"):
        if way == "first":
            return self.scores(self.trunk(self.first(x).relu()).relu())
        x = self.norm(self.second(x))
        return {"boxes": self.boxes(x + self.trunk(x))}


CALLS = [prunus.Inputs((X,)), prunus.Inputs((Y,), {"way": "second"})]


def reasons(groups):
    return {f.what.partition(":")[0]: f.why for f in groups.fixed}


def test_groups_fit_every_call():
    model = Two()
    alone, both = prunus.trace(model, CALLS[0]), prunus.trace(model, CALLS)
    assert "second" in reasons(alone) and "boxes" in reasons(alone)  # not visited
    assert [(g.id, g.units) for g in both] == [("first", 16)]  # x + trunk(x) makes one of the rest
    assert set(reasons(both)) == {"scores", "boxes"}
    assert {s.name for s in both["first"].slices} >= {"second.weight", "trunk.weight", "norm.weight", "boxes.weight"}
    assert both.costs()["macs"] == macs(model, CALLS).total == macs(model, CALLS[0]).total + macs(model, CALLS[1]).total


@pytest.mark.parametrize("seed", range(3))
def test_what_is_cut_is_right_for_every_call(seed):
    model = Two()
    groups = prunus.trace(model, CALLS)
    keep = random_keep(groups, seed)
    silenced = copy.deepcopy(model)
    report = prunus.shrink_(model, groups, groups.plan(keep))
    assert report.verified.max_relative_error < 1e-7
    assert macs(model, CALLS).total == report.after["macs"] == groups.costs(keep)["macs"]
    with torch.no_grad():
        for layer in (silenced.first, silenced.trunk, silenced.second):
            layer.weight[~keep], layer.bias[~keep] = 0, 0
        assert torch.allclose(model(X), silenced(X), atol=1e-6)
    assert model(Y, "second")["boxes"].shape == (2, 4)


def test_a_proof_sees_every_call():
    """A call that a cut would get wrong, though the first is right, is told by the proof."""

    class Hidden(Two):
        def forward(self, x, way="first"):
            if way == "second":  # a size that hides
                return self.boxes(self.norm(self.second(x))) * torch.tensor([float(str(len(self.second.weight)))])
            return super().forward(x, way)

    model = Hidden()
    groups = prunus.trace(model, CALLS)
    with pytest.raises(prunus.VerificationError, match="differs from the silenced original"):
        prunus.shrink_(model, groups, groups.plan(random_keep(groups, 0)))


def test_verbs_take_a_list():
    model = Two()
    report = prunus.prune_(model, CALLS, budget=prunus.Budget(params=0.6), outputs=lambda out: out)
    assert report.in_place and model.trunk.in_features == model.second.out_features < 16
    pruner = prunus.Pruner(Two(), CALLS, budget=prunus.Budget(macs=0.6))
    assert pruner.groups.inputs.more == (CALLS[1],)
    groups = prunus.trace(Two(), CALLS, in_place=False)
    with pytest.raises(prunus.TraceError, match="a rewritten network is one recorded call, and these groups are of 2"):
        prunus.shrink_(Two(), groups, groups.plan(random_keep(groups, 0)))


def test_a_list_of_tensors_holds_positional_inputs():
    assert prunus.Inputs.of([X, Y]).args == (X, Y) and prunus.Inputs.of([X, Y]).more == ()
    assert prunus.Inputs.of(CALLS).args == (X,) and len(prunus.Inputs.of(CALLS).tensors) == 2
    assert [t.dtype for t in prunus.Inputs.of(CALLS).to(torch.float64).tensors] == [torch.float64] * 2
