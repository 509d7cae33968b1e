"""Attributes are integers: where a cut would make one a fraction, widths go in steps or in proportion."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import nn

import prunus
from prunus.core.torchvision_ops import declare_torchvision_operators
from prunus.tracing.trace import odd_cut

X = torch.randn(2, 6, 8)


class Ratio(nn.Module):
    """Values are `ratio` times as wide as keys, as in LeViT."""

    def __init__(self, heads=2, key=4, ratio=3):
        super().__init__()
        self.heads, self.key, self.ratio = heads, key, ratio
        self.qkv, self.out = nn.Linear(8, heads * key * (2 + ratio)), nn.Linear(heads * key * ratio, 3)

    def forward(self, x):
        qkv = self.qkv(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2)
        q, k, v = qkv.split([self.key, self.key, self.ratio * self.key], -1)
        return self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(*x.shape[:2], -1))


class Half(nn.Module):
    """Half of the channels are a gate; the module holds the half."""

    def __init__(self, width=24):
        super().__init__()
        self.half, self.a, self.b = width // 2, nn.Linear(8, width), nn.Linear(width, 3)

    def forward(self, x):
        x = self.a(x)
        assert x.shape[-1] / 2 == self.half
        return self.b(x.tanh())


class Third(Half):
    """A product of two widths, of which the module holds the third part."""

    def __init__(self):
        super().__init__()
        self.b, self.d, self.third = nn.Linear(8, 6), nn.Linear(24 * 6, 3), 24 * 6 // 3

    def forward(self, x):
        both = (self.a(x)[..., None] * self.b(x)[..., None, :]).flatten(-2)
        assert both.shape[-1] / 3 == self.third
        return self.d(both)


@pytest.mark.parametrize("kind", [Ratio, Half, Third])
def test_every_plan_gives_whole_numbers(kind):
    torch.manual_seed(0)
    model = kind()
    groups = prunus.trace(model, X)
    assert groups.units or kind is Third  # which no step makes whole
    for seed in range(6):
        keep = odd_cut(groups, seed)
        assert all(groups.edit(rule, keep, groups.alive(keep)).denominator == 1 for rule in groups.edits)
    before = sum(p.numel() for p in model.parameters())
    report = prunus.prune_(model, X, budget=prunus.Budget(params=0.7))
    assert report.verified.max_relative_error < 1e-7 and report.in_place is (kind is not Third)
    assert sum(p.numel() for p in report.model.parameters()) <= 0.7 * before


def test_values_stay_in_proportion_to_keys():
    model = Ratio()
    prunus.prune_(model, X, budget=prunus.Budget(params=0.7))
    assert model.ratio == 3 and model.key < 4 and Fraction(model.out.in_features, model.heads) == 3 * model.key


def test_what_is_halved_is_cut_by_two():
    groups = prunus.trace(Half(), X)
    assert [(g.id, g.step) for g in groups] == [("a", 2)]
    with pytest.raises(prunus.InputError, match="keeps 23 units of group 'a'.* multiples of 2"):
        groups.plan(torch.arange(24) > 0)


def test_levit_of_transformers():
    declare_torchvision_operators()
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    sizes = {"hidden_sizes": [16, 32, 48], "num_attention_heads": [2, 4, 6], "key_dim": [8, 8, 8]}
    config = transformers.LevitConfig(image_size=64, depths=[1, 1, 1], num_labels=5, **sizes)
    model = transformers.LevitForImageClassification(config).eval()
    report = prunus.prune_(model, torch.randn(1, 3, 64, 64), budget=prunus.Budget(params=0.5))
    attention = model.levit.encoder.stages[0].layers[0].module
    assert report.in_place and report.verified.max_relative_error < 1e-7 and attention.attention_ratio == 2
