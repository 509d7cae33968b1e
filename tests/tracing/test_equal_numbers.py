"""What can be cut does not depend on numbers that happen to be equal: groups, strides, heads, samples, positions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.tracing.calls import Dim, Fact
from prunus.tracing.functions import Functions
from prunus.tracing.symbols import Attribute, traced


def between(*layers: nn.Module, width: int = 8, out: int = 8) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 1), *layers, nn.ReLU(), nn.Conv2d(out, 4, 1))


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.attention, self.b = nn.Linear(3, 8), nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x.flatten(2).mT)
        return self.b(self.attention(x, x, x, need_weights=False)[0])


class Shuffled(nn.Module):
    """Channels in two halves, taken by turns, as ShuffleNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.groups = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), 2

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        x = self.a(x).view(n, self.groups, -1, h, w).transpose(1, 2).reshape(n, -1, h, w)
        return self.b(x)


class Rms(nn.Module):
    """As torch has it, called in every way that it takes."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.a, self.b, self.width, self.way = nn.Linear(3, 8), nn.Linear(8, 4), [8], way
        self.weight = nn.Parameter(torch.rand(8) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x.mean((2, 3)))
        if self.way == "function":
            x = F.rms_norm(x, self.width, weight=self.weight)
        elif self.way == "operator":
            x = torch.rms_norm(x, normalized_shape=self.width, eps=1e-3)
        else:
            x = F.rms_norm(x, x.shape[1:])
        return self.b(x)


NETWORKS = {
    "two groups of a norm": lambda: between(nn.GroupNorm(2, 8)),
    "four groups of a norm": lambda: between(nn.GroupNorm(4, 8)),
    "groups of a convolution like its stride": lambda: between(nn.Conv2d(8, 8, 2, 2, padding=2, dilation=2, groups=2)),
    "a transposed one": lambda: between(nn.ConvTranspose2d(8, 8, 2, 2, groups=2)),
    "depthwise": lambda: between(nn.Conv2d(8, 8, 2, 2, groups=8)),
    "places to channels": lambda: between(nn.PixelUnshuffle(2), out=32),
    "channels to places": lambda: between(nn.PixelShuffle(2), out=2),
    "shuffled": Shuffled,
    "two heads": Attending,
    "rms": lambda: nn.Sequential(nn.Conv2d(3, 8, 4), nn.Flatten(), nn.Linear(8, 4), nn.RMSNorm(4), nn.Linear(4, 2)),
    "rms by a function": lambda: Rms("function"),
    "rms by an operator": lambda: Rms("operator"),
    "rms of a shape": lambda: Rms("shape"),
}


def seen(model: nn.Module, samples: int, side: int = 4) -> set[tuple]:
    groups = prunus.trace(model, torch.randn(samples, 3, side, side))
    return {(g.id, g.units, g.parts, g.step) for g in groups} | {(e.module, e.attribute) for e in groups.edits}


@pytest.mark.parametrize("name", NETWORKS)
def test_groups_are_the_same_for_any_number_of_samples(name: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]().eval()
    expected = seen(model, 3)
    assert expected and all(seen(model, n) == expected for n in (1, 2, 4, 8))


@pytest.mark.parametrize("name", ["two groups of a norm", "four groups of a norm", "shuffled"])
def test_groups_are_the_same_for_any_number_of_positions(name: str) -> None:
    model = NETWORKS[name]().eval()
    assert seen(model, 4, side=2) == seen(model, 3, side=5)


@pytest.mark.parametrize("samples", [2, 3])
def test_of_two_groups_of_a_norm_one_may_stay(samples: int) -> None:
    torch.manual_seed(0)
    model = NETWORKS["two groups of a norm"]().eval()
    groups = prunus.trace(model, torch.randn(samples, 3, 4, 4))
    assert [(g.id, g.units, g.parts) for g in groups] == [("0/groups", 2, 1), ("0/group_width", 8, 2)]
    plan = groups.plan(torch.tensor([True, False] + [True] * 3 + [False] + [True] * 3 + [False]))
    report = prunus.shrink_(model, groups, plan)
    assert report.verified.max_relative_error < 1e-12 and not report.verified.exact
    assert model[1].num_groups == 1 and model[1].num_channels == 3 and model[0].weight.shape[0] == 3


def test_statistics_of_rms_norm_are_those_of_the_kept_units() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.RMSNorm(8, eps=1e-3), nn.Linear(8, 2)).double().eval()
    nn.init.uniform_(model[1].weight)
    x, kept = torch.randn(5, 3, dtype=torch.float64), [0, 2, 3, 7]
    h = model[0](x)[:, kept]
    expected = F.linear(
        h / (h.square().mean(1, keepdim=True) + 1e-3).sqrt() * model[1].weight[kept],
        model[2].weight[:, kept],
        model[2].bias,
    )
    groups = prunus.trace(model, x)
    report = prunus.shrink_(model, groups, prunus.Plan({"0": prunus.GroupPlan(8, tuple(kept))}))
    assert report.in_place and model[1].normalized_shape == (4,) and not report.verified.exact
    torch.testing.assert_close(model(x), expected)


def placed(numbers: list[int], found: list[int], follow: set[int]) -> list[int | None]:
    """Which of the integers found each number is said to be; those in `follow` have to follow a cut."""
    facts = [Fact((at,), found[at], Dim()) for at in follow]
    functions = Functions(SimpleNamespace(calls=[SimpleNamespace(facts=facts)]))  # type: ignore[arg-type]
    places = functions._places(numbers, [(0, (at,), n) for at, n in enumerate(found)])
    return [None if place is None else place[1][0] for place in places]


def test_numbers_are_found_among_those_of_operators() -> None:
    two = traced(2, Attribute("", "groups", 2))
    assert placed([two], [2, 8, 25, 2], {3}) == [3]  # the one that follows
    assert placed([2], [2, 2], {1}) == [0]  # a plain number need not
    assert placed([two, 2], [2, 2, 2], {1}) == [1, 2]
    assert placed([two, 3, 2], [2, 3, 2], {2}) == [0, 1, 2]  # all of them in order come first
    assert placed([5, two, 7], [7, two, 9], {1}) == [None, 1, 0]  # what is left, in any order
    assert placed([3, two], [2, 3], {0}) == [1, 0]
