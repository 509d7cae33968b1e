"""Where tensors lie in memory changes nothing: the same groups, and the same cuts pass, in every memory format."""

from __future__ import annotations

import copy
import os

import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.core import TensorPlan
from prunus.surgery.reference import other_inputs
from prunus.tracing.apply import narrow
from tests.keeping import random_keep
from tests.tracing.networks import STEPS, Random, randomise

MIXING = ("group-norm", "instance-norm", "layer-norm", "tokens", "softmax", "normalize", "attention", "rms", "mean")


class Layouts(nn.Module):
    """Convolutions between operators that compute over channels, and an end that flattens in one of many ways."""

    def __init__(self, steps: list[tuple[str, int]], end: str) -> None:
        super().__init__()
        self.steps, self.end = steps, end
        self.stem, channels = nn.Conv2d(3, 8, 3, padding=1), 8
        self.layers = nn.ModuleList()
        for kind, number in steps:
            wide = 4 * (1 + number % 3)
            self.layers.append(nn.ModuleList([nn.Conv2d(channels, wide, 1 + 2 * (number % 2), padding=number % 2)]))
            channels = wide
            self.layers[-1].append(_mixing(kind, channels))
        self.head = nn.Linear(channels * (16 if end.startswith("flat") else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for (kind, _), (conv, layer) in zip(self.steps, self.layers):
            x = _mix(kind, layer, conv(x).sigmoid())
        if self.end == "flatten":
            return self.head(x.flatten(1))
        if self.end == "flatten last":
            return self.head(x.permute(0, 2, 3, 1).flatten(1))
        if self.end == "tokens":
            return self.head(x.flatten(2).transpose(1, 2)).mean(1)
        if self.end == "view":
            return self.head(x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]))
        return self.head(x.mean((2, 3)))


ENDS = ("flatten", "flatten last", "tokens", "view", "mean")


def _mixing(kind: str, channels: int) -> nn.Module:
    if kind == "group-norm":
        return nn.GroupNorm(4, channels)
    if kind == "instance-norm":
        return nn.InstanceNorm2d(channels, affine=True)
    if kind in ("layer-norm", "tokens"):
        return nn.LayerNorm(channels)
    if kind == "rms":
        return nn.RMSNorm(channels)
    if kind == "attention":
        return nn.Linear(channels, 3 * channels)
    return nn.Identity()


def _mix(kind: str, layer: nn.Module, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    if kind in ("layer-norm", "rms"):
        return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    if kind == "tokens":
        return layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(n, c, h, w)
    if kind == "softmax":
        return x.softmax(1)
    if kind == "normalize":
        return F.normalize(x, dim=1)
    if kind == "mean":
        return x - x.mean(1, keepdim=True)
    if kind == "attention":
        q, k, v = layer(x.flatten(2).transpose(1, 2)).chunk(3, -1)
        return ((q @ k.transpose(1, 2)).softmax(-1) @ v).transpose(1, 2).view(n, -1, h, w)
    return layer(x)


def cut(model: nn.Module, x: Tensor, seed: int) -> tuple[prunus.Groups, prunus.Report | str]:
    groups = prunus.trace(model, x)
    try:
        return groups, prunus.shrink_(model, groups, groups.plan(random_keep(groups, seed)))
    except prunus.PrunusError as error:
        return groups, str(error)


def same_in_both(model: nn.Module, x: Tensor, seed: int) -> None:
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    both = [cut(model, x, seed), cut(last, x.contiguous(memory_format=torch.channels_last), seed)]
    mixed = cut(copy.deepcopy(last), x, seed) if seed % 3 == 0 and not isinstance(both[0][1], str) else None
    (groups, plain), (others, report) = both
    assert [(g.id, g.units) for g in groups] == [(g.id, g.units) for g in others]
    assert not isinstance(plain, str), plain
    assert not isinstance(report, str), report
    assert report.after == plain.after and report.verified.max_relative_error < 1e-9
    assert mixed is None or not isinstance(mixed[1], str)
    for p, q in zip(model.parameters(), last.parameters()):
        assert torch.equal(p, q)


longer = int(os.environ.get("PRUNUS_LONGER", 1))
steps = st.lists(st.tuples(st.sampled_from(MIXING), st.integers(0, 11)), min_size=1, max_size=3)


@settings(max_examples=15 * longer, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps, st.sampled_from(ENDS), st.integers(0, 1000))
@example([("group-norm", 1)], "tokens", 1)
@example([("attention", 2), ("group-norm", 2)], "tokens", 2)
@example([("group-norm", 4), ("softmax", 1)], "view", 3)
@example([("instance-norm", 0), ("group-norm", 0)], "tokens", 0)
def test_operators_over_channels(steps, end, seed):
    torch.manual_seed(seed)
    same_in_both(Layouts(steps, end).eval(), torch.randn(3, 3, 4, 4), seed)


@settings(max_examples=8 * longer, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 11)), min_size=1, max_size=5), st.integers(0, 1000))
def test_random_networks(steps, seed):
    torch.manual_seed(seed)
    same_in_both(randomise(Random(steps, 8), seed), torch.randn(2, 3, 6, 6), seed)


def test_what_is_cut_and_what_is_noise_lies_as_the_whole_does():
    for dims, format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        whole = torch.randn(8, 6, *[3] * (dims - 2)).to(memory_format=format)
        part = narrow(whole, TensorPlan(tuple(whole.shape), {0: (1, 4), 1: (0, 2, 5)}))
        assert part.is_contiguous(memory_format=format) and not part.is_contiguous()
        assert torch.equal(part, whole[[1, 4]][:, [0, 2, 5]])
        assert other_inputs(prunus.Inputs.of(whole)).tensors[0].stride() == whole.stride()
    pointwise = torch.randn(8, 6, 1, 1)
    for whole, strides in ((pointwise, (3, 1, 1, 1)), (pointwise.to(memory_format=torch.channels_last), (3, 1, 3, 3))):
        assert narrow(whole, TensorPlan((8, 6, 1, 1), {0: (1, 4), 1: (0, 2, 5)})).stride() == strides
    turned = torch.randn(6, 8).t()
    assert narrow(turned, TensorPlan((8, 6), {0: (1, 4)})).stride() == (1, 2)
    assert narrow(turned.contiguous(), TensorPlan((8, 6), {0: (1, 4)})).stride() == (6, 1)
