"""A weight that forward computes from parameters is silenced as layers read it, whatever it makes of zeros."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import prunus
from prunus.surgery.prove import prove
from prunus.surgery.reference import reference
from prunus.surgery.shrink import apply_
from tests.keeping import random_keep

BY_ELEMENT = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "exp": torch.exp,
    "cos": torch.cos,
    "about one": lambda w: 1 + w,
    "ternary": lambda w: torch.where(w.abs() > 0.5, w.sign(), 0.1 * torch.ones_like(w)),
    "in place": lambda w: w.clone().add_(1).mul_(2),
}
BY_ROW = {
    "standardised": lambda w: (w - w.mean(1, keepdim=True)) / (w.var(1, keepdim=True) + 1e-5).sqrt(),
    "by a norm": lambda w: F.layer_norm(w + 1, w.shape[1:]),
    "shares": lambda w: w.exp() / w.exp().sum(1, keepdim=True),
    "softmax": lambda w: w.softmax(1),
    "of length one": lambda w: F.normalize(torch.sigmoid(w), dim=1),
    "binary": lambda w: (w - 0.2).sign() * (w + 1).abs().mean(1, keepdim=True),
}


class Layer(nn.Module):
    """A linear layer whose weight is a function of its parameter, or another tensor."""

    def __init__(self, inputs: int, outputs: int, form, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, generator=draw, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(outputs, generator=draw, dtype=torch.float64))
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.form(self.weight), self.bias)


def network(form) -> nn.Sequential:
    return nn.Sequential(Layer(3, 8, form, 0), nn.Sigmoid(), Layer(8, 6, form, 1), nn.ReLU(), Layer(6, 4, form, 2))


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def cut(model: nn.Module, share: float = 0.6) -> tuple[prunus.Report, prunus.Groups, Tensor]:
    groups = prunus.trace(model, X)
    keep = random_keep(groups, 1, share)
    return prunus.shrink_(model, groups, groups.plan(keep)), groups, keep


def silenced_by_hand(model: nn.Sequential, form, groups: prunus.Groups, keep: Tensor) -> Tensor:
    """What the network gives where removed units are zero in the weights that layers read, and in the biases."""
    twin = copy.deepcopy(model)
    for layer in twin[::2]:
        layer.weight.data, layer.form = form(layer.weight.detach()), lambda w: w
    with torch.no_grad():
        for at, group in enumerate(groups):
            gone = ~keep[group.offset : group.offset + group.units]
            twin[2 * at].weight[gone] = 0
            twin[2 * at].bias[gone] = 0
            twin[2 * at + 2].weight[:, gone] = 0
    return twin(X)


@pytest.mark.parametrize("form", BY_ELEMENT.values(), ids=BY_ELEMENT)
def test_a_cut_gives_what_is_left_of_the_weight_that_layers_read(form) -> None:
    model = network(form)
    whole = copy.deepcopy(model)
    report, groups, keep = cut(model)
    assert [g.id for g in groups] == ["0", "2"] and not keep.all()
    assert report.verified.max_relative_error < 1e-12 and report.verified.exact and report.verified.sensitive
    torch.testing.assert_close(model(X), silenced_by_hand(whole, form, groups, keep))


@pytest.mark.parametrize("form", BY_ROW.values(), ids=BY_ROW)
def test_what_counts_all_of_a_row_counts_the_kept_ones(form) -> None:
    report, *_ = cut(network(form))
    assert report.verified.max_relative_error < 1e-12 and not report.verified.exact and report.verified.sensitive


@pytest.mark.parametrize("form", [BY_ELEMENT["sigmoid"], BY_ELEMENT["about one"], BY_ROW["shares"]])
def test_a_wrong_cut_of_a_computed_weight_fails(form) -> None:
    model = network(form)
    groups = prunus.trace(model, X)
    keep = random_keep(groups, 1)
    proof = reference(model, groups, keep)
    apply_(model, groups.plan(keep.roll(1)))
    with pytest.raises(prunus.VerificationError, match="differs from the silenced original"):
        prove(model, proof)


def test_what_is_computed_once_and_read_twice_is_silenced_for_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (Layer(n, m, torch.cos, n) for n, m in ((3, 8), (8, 8), (8, 2)))

        def forward(self, x: Tensor) -> Tensor:
            w = self.b.form(self.b.weight)
            return self.c(F.linear(F.linear(self.a(x), w).sigmoid(), w.t()))

    report, *_ = cut(Twice())
    assert report.verified.max_relative_error < 1e-12 and report.verified.exact


WRAPPED = {
    "mask": lambda layer: prune.random_unstructured(layer, "weight", 0.3),
    "weight norm": parametrizations.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_weights_that_torch_computes(wrap) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Sigmoid(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)).double()
    for layer in model[::2]:
        wrap(layer)
    report, groups, _ = cut(model)
    assert [g.units for g in groups] == [8, 6] and report.verified.max_relative_error < 1e-12
