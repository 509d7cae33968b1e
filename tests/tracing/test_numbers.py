"""Numbers that forward computes from its sizes, in whatever way: made good in the weights, or the size stays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import prunus
from tests.keeping import random_keep

X = torch.randn(3, 6, 5)
SCALES = {
    "math.sqrt": lambda a, d: a / math.sqrt(d),
    "float, math.sqrt": lambda a, d: a * math.sqrt(1.0 / float(d)),
    "math.pow": lambda a, d: a * math.pow(d, -0.5),
    "power": lambda a, d: a * d**-0.5,
    "numpy.sqrt": lambda a, d: a / np.sqrt(d),
    "numpy.power": lambda a, d: np.power(float(d), -0.5) * a,
    "exp": lambda a, d: a * math.exp(-math.log(d) / 2),
    "tensor": lambda a, d: a / torch.tensor(float(d)).sqrt(),
    "size": lambda a, d: a / float(d),
    "root": lambda a, d: torch.mul(a, float(d) ** -0.25),
}
ODD = {  # no power of a size
    "sum": lambda a, d: a / (float(d) + 1),
    "int": lambda a, d: a / int(d**0.5),
    "round": lambda a, d: a * round(math.log(d), 3),
    "added": lambda a, d: a + 1 / float(d) * torch.arange(a.shape[-1]),
}


class Attention(nn.Module):
    def __init__(self, scale, dim=16, heads=2):
        super().__init__()
        self.heads, self.scale, self.e, self.o = heads, scale, nn.Linear(5, dim), nn.Linear(dim, 2)
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, x):
        x = self.e(x)
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        weights = self.scale(q @ k.mT, q.shape[-1]).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).flatten(2))


def ids(groups):
    return [g.id for g in groups]


@pytest.mark.parametrize("name", SCALES)
def test_scales_are_made_good_in_the_weights(name):
    torch.manual_seed(0)
    model = Attention(SCALES[name])
    groups = prunus.trace(model, X)
    assert [f.group for f in groups.folds] == ["q/head_dim"] and ids(groups) == ["e", "q/heads", "q/head_dim", "v"]
    report = prunus.shrink_(model, groups, groups.plan(random_keep(groups, 1)))
    assert report.verified.max_relative_error < 1e-6 and model.q.out_features < 16


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_power_of_a_size_leaves_the_size(name):
    model = Attention(ODD[name])
    groups = prunus.trace(model, X)
    assert ids(groups) == ["e", "q", "v"] and groups["q"].units == 2  # whole heads alone
    why = {f.what.partition(":")[0]: f.why for f in prunus.trace(Attention(ODD[name], heads=1), X).fixed}
    assert why["q"].startswith("the model computes a number from its size (")
    assert prunus.shrink_(model, groups, groups.plan(random_keep(groups, 0))).verified.max_relative_error < 1e-7


def test_numbers_read_out_of_tensors_say_nothing_of_sizes():
    model = Attention(lambda a, d: a / float(a.abs().max()) * float(model.q.weight.std()))
    assert ids(prunus.trace(model, X)) == ["e", "q/heads", "q/head_dim", "v"]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize(("kind", "heads"), [("attention", 4), ("attention", 1), ("encoder", 2), ("decoder", 4)])
def test_attention_of_torch_is_cut_in_place(kind, heads, weights, first):
    if not weights and kind != "attention":
        return  # its layers never ask for them

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.o = nn.Linear(5, 16), nn.Linear(16, 2)
            args = {"batch_first": first}
            if kind == "attention":
                self.r = nn.MultiheadAttention(16, heads, **args)
            else:
                layer = {"encoder": nn.TransformerEncoderLayer, "decoder": nn.TransformerDecoderLayer}[kind]
                self.r = layer(16, heads, 24, **args)

        def forward(self, x):
            x = self.e(x)
            if kind == "attention":
                return self.o(self.r(x, x, x, need_weights=weights)[0])
            return self.o(self.r(x, x) if kind == "decoder" else self.r(x))

    torch.manual_seed(0)
    model = Net()
    groups = prunus.trace(model, X)
    assert groups.folds or kind == "decoder"
    keep = torch.ones(groups.units, dtype=torch.bool)
    for ids in [*groups.proportions, *([g.id] for g in groups if not any(g.id in p for p in groups.proportions))]:
        for id, quantum in zip(ids, groups.quanta(ids)):
            for part in range(groups[id].parts):
                start = groups[id].offset + part * groups[id].count
                keep[start : start + quantum] = groups[id].count == quantum
    report = prunus.shrink_(model, groups, groups.plan(keep))
    assert report.in_place and report.verified.max_relative_error < 1e-7
    inner = model.r if kind == "attention" else model.r.self_attn
    assert inner.in_proj_weight.shape[0] < 48 or kind == "decoder"
