"""Batches may hold more than the example: labels, of which forward itself makes a loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import prunus
from prunus.criteria import needed

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


class Labelled(nn.Module):
    """Returns a loss beside its scores where it is given labels, as models of transformers do."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x, labels=None, early=False):
        if early and labels is not None:
            x = x + 0 * labels[:, None]
        out = {"scores": self.c(self.b(self.a(x).relu()).relu())}
        if labels is not None:
            out["loss"] = F.cross_entropy(out["scores"].view(-1, 3), labels.view(-1))
        return out


@pytest.mark.parametrize("criterion", ["taylor", "taylor-gate", "apoz", "fisher", "obs", "thinet", "taylor-activation"])
def test_labels_in_a_batch_change_no_statistic_of_the_layers(criterion):
    model, batch = Labelled(), {"x": X, "labels": LABELS}
    without = prunus.trace(model, prunus.Inputs(kwargs={"x": X}))
    within = prunus.trace(model, prunus.Inputs(kwargs=batch))
    assert [g.id for g in without] == [g.id for g in within]
    found = []
    for groups in (without, within):
        stats = prunus.collect(model, groups, [batch, batch], needed(criterion, [batch]))
        found.append(prunus.score(groups, criterion, stats))
    assert all(torch.allclose(found[0][id], found[1][id]) for id in found[0]) and found[0]
    stats = prunus.collect(model, without, [{"x": X}] * 2, needed(criterion, [{"x": X}]), loss=of(LABELS))
    alone = prunus.score(without, criterion, stats)
    assert all(torch.allclose(found[0][id], alone[id], rtol=1e-4) for id in alone)


def of(labels):
    """The loss that forward would make of labels, made outside."""
    return lambda out, batch: F.cross_entropy(out["scores"], labels)


def test_a_pair_of_inputs_and_labels_is_taken_apart():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    report = prunus.prune_(model, X, criterion="taylor-gate", data=[(X, LABELS)], budget=prunus.Budget(params=0.7))
    assert report.verified.max_relative_error < 1e-7


def test_a_forward_that_goes_another_way_before_is_still_refused():
    model = Labelled()
    groups = prunus.trace(model, prunus.Inputs(kwargs={"x": X, "early": True}))
    batch = {"x": X, "labels": LABELS, "early": True}
    with pytest.raises(prunus.InputError, match="where it called .* when it was traced"):
        prunus.collect(model, groups, [batch], needed("apoz", [batch]))
