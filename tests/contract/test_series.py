"""Layers in series hold one gate: an identity that is put between two layers changes no score."""

from functools import cache

import pytest
import torch
from torch import nn

import prunus
from prunus.criteria import criteria, needs, score
from prunus.criteria.base import savings
from prunus.observe import collect
from tests.traced import batches

KINDS = ("depthwise", "norm", "pointwise")
OWN = "it counts weights as they are, and an identity has some of its own"
READS = "it looks at what the layers that read a unit make of it, and the identity is such a layer"
CHANGE = {  # criterion, kind of identity -> why its scores change
    **{(name, "depthwise"): OWN for name in ("l1", "l2", "lamp", "agglomerative")},
    ("agglomerative", "norm"): OWN,
    **{
        (name, "pointwise"): READS
        for name in ("obs", "obs-fisher", "thinet", "thinet-omp", "lasso", "flap", "dcp", "wanda")
    },
    **{("llm-pruner", kind): "it sums over every weight that goes with a unit" for kind in ("depthwise", "pointwise")},
    **{("grasp", kind): "the norm of the gradient is over the weights of the identity as well" for kind in KINDS},
}
DRAWN = {  # another network, other numbers
    **{("obd-hutchinson", kind): "probes are drawn layer by layer" for kind in KINDS},
    ("obc", "pointwise"): "rows are drawn layer by layer",
}
# a sum over single weights counts those of the last stage: others, behind an identity norm, and so another sum
SUMS = {"taylor-weight", "taylor-second", *(entry.name for entry in criteria if entry.name.startswith("obd"))}
PLACES = 9  # in front of a norm, behind it and behind the activation: of the stem, a 1x1 and a depthwise convolution
LAST = (1, 2, 7, 8)  # behind the last norm of a unit


class Inverted(nn.Module):
    """A stem and an inverted residual, 1x1 - depthwise - 1x1, on 6 x 6 images, with places for identities."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.a, self.bn_a = nn.Conv2d(4, 5, 1, bias=False), nn.BatchNorm2d(5)
        self.d, self.bn_d = nn.Conv2d(5, 5, 3, padding=1, groups=5, bias=False), nn.BatchNorm2d(5)
        self.b, self.bn_b = nn.Conv2d(5, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 5)
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=draw) * 0.4 + 0.1)
        self.places = nn.ModuleList(nn.Identity() for _ in range(PLACES))

    def forward(self, x):
        for first, layer, norm in ((0, self.stem, self.bn), (3, self.a, self.bn_a), (6, self.d, self.bn_d)):
            x = self.places[first + 1](norm(self.places[first](layer(x))))
            x = self.places[first + 2](x.relu())
            stream = x if first == 0 else stream  # noqa: F821
        return self.fc((stream + self.bn_b(self.b(x))).relu().mean((2, 3)))


def identity(kind: str, width: int) -> nn.Module:
    """What gives its input on, to the bit."""
    if kind == "norm":
        return nn.BatchNorm2d(width, eps=0.0)
    groups, kernel = (width, 3) if kind == "depthwise" else (1, 1)
    layer = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=groups, bias=False)
    nn.init.dirac_(layer.weight, groups)
    return layer


@cache
def network(kind: str, places: tuple[int, ...]) -> tuple[nn.Module, prunus.Groups]:
    """The network with identities at some places, traced."""
    model = Inverted().eval()
    for place in places:
        model.places[place] = identity(kind, 4 if place < 3 else 5).eval()
    return model, prunus.trace(model, torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1)))


@cache
def scores_of(name: str, kind: str = "", places: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    """Scores before they are divided by the cost of a unit, in which an identity has a part."""
    model, groups = network(kind, places)
    stats = collect(model, groups, batches(), needs(name)) if needs(name) else None
    found, per = score(groups, name, stats, normalize="none"), criteria[name].declares["per"]
    return {id: values * (savings(groups, groups[id], per) if per else 1) for id, values in found.items()}


def cases():
    for entry in criteria:
        for kind in KINDS:
            why = CHANGE.get((entry.name, kind))
            marks = [pytest.mark.xfail(reason=why, strict=True, raises=AssertionError)] if why else []
            if (entry.name, kind) in DRAWN:
                marks = [pytest.mark.skip(DRAWN[entry.name, kind])]
            yield pytest.param(entry.name, kind, marks=marks, id=f"{entry.name}-{kind}")


@pytest.mark.parametrize(("name", "kind"), list(cases()))
def test_an_identity_in_series_changes_no_score(name, kind):
    places = tuple(range(PLACES)) if kind != "pointwise" else (8,)  # right before what reads: else units are others
    if name in SUMS and kind == "norm":
        places = tuple(place for place in places if place not in LAST)
    before, after = scores_of(name), scores_of(name, kind, places)
    for id in before if kind != "pointwise" else ["a"]:
        rounding = 1e-5 * float(before[id].abs().max())
        torch.testing.assert_close(after[id], before[id], rtol=1e-4, atol=rounding)


def test_identities_give_their_input_to_the_bit():
    (x, _), *_ = batches(1)
    for kind in KINDS:
        assert torch.equal(network(kind, tuple(range(PLACES)))[0](x), network("", ())[0](x))
