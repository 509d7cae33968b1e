"""A weight that forward computes from parameters scores as the same weight put in as a plain parameter."""

import copy
import os
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import prunus
from prunus.core import Budget, InputError, VerificationError
from prunus.core.torchvision_ops import declare_torchvision_operators
from prunus.criteria import criteria, needs, score
from prunus.observe import collect
from tests.keeping import random_keep
from tests.tracing.networks import STEPS, Random, randomise

every = pytest.mark.parametrize(
    "entry", [e for e in criteria if not e.declares["seeded"]], ids=lambda entry: entry.name
)


def drawn(*shape: int, seed: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 3)


class Plain(nn.Module):
    def __init__(self, *shape, seed=0):
        super().__init__()
        self.weight = drawn(*shape, seed=seed)

    def forward(self):
        return self.weight


class Masked(Plain):  # as torch.nn.utils.prune does
    def __init__(self, *shape, seed=0):
        super().__init__(*shape, seed=seed)
        self.register_buffer("mask", (drawn(*shape, seed=seed + 1) > 0).double())

    def forward(self):
        return self.mask * self.weight


class Joined(Plain):  # of the columns of a kernel, or of the classes
    def __init__(self, *shape, seed=0):
        self.at = len(shape) - 1 if len(shape) > 2 else 0
        sizes = [(*shape[: self.at], n, *shape[self.at + 1 :]) for n in (1, shape[self.at] - 1)]
        super().__init__(*sizes[0], seed=seed)
        self.rest = drawn(*sizes[1], seed=seed + 1)

    def forward(self):
        return torch.cat([self.weight, self.rest], self.at)


class Chosen(Masked):
    def __init__(self, *shape, seed=0):
        super().__init__(*shape, seed=seed)
        self.other = drawn(*shape, seed=seed + 2)

    def forward(self):
        return torch.where(self.mask > 0, self.weight, self.other * torch.tensor(0.5))


class Standardised(Plain):
    def forward(self):
        rows = self.weight.flatten(1)
        return ((rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)).view_as(self.weight)


class Packed(nn.Module):  # one parameter for all layers of the network, in pieces
    def __init__(self, *shape, seed=0):
        super().__init__()
        self.shape = shape
        size = torch.Size(shape).numel()
        self.weight = drawn(shape[0], size // shape[0] + 3, seed=seed)

    def forward(self):
        return self.weight[:, 3:].reshape(self.weight.shape[0], -1, *self.shape[2:])


FORMS = [Masked, Joined, Chosen, Standardised, Packed]
SHAPES = {"a": (6, 3, 3, 3), "b": (5, 6, 3, 3), "c": (4, 5)}


class Network(nn.Module):
    def __init__(self, form):
        super().__init__()
        for i, (name, shape) in enumerate(SHAPES.items()):
            self.add_module(name, form(*shape, seed=10 * i))
        self.norm, self.bias = nn.BatchNorm2d(6, dtype=torch.float64), drawn(5, seed=7)

    def forward(self, x):
        x = F.conv2d(x, self.a(), padding=1)
        x = F.conv2d(self.norm(x).relu(), self.b(), self.bias).mean((2, 3)).relu()
        return F.linear(x, self.c())


def plain_twin(network: Network) -> Network:
    twin = Network(Plain)
    twin.norm, twin.bias = network.norm, network.bias
    for name in SHAPES:
        getattr(twin, name).weight.data = getattr(network, name)().detach().clone()
    return twin


def batches():
    draw = torch.Generator().manual_seed(3)
    sizes = ((6, 0), (5, 1))
    return [
        (torch.randn(n, 3, 7, 7, generator=draw, dtype=torch.float64), (torch.arange(n) + at) % 4) for n, at in sizes
    ]


@cache
def looked_at(form, twin: bool):
    """The groups of a network, and all statistics that there are."""
    network, data = Network(form), batches()
    model = plain_twin(network) if twin else network
    groups = prunus.trace(model, data[0][0][:2])
    return groups, collect(model, groups, data, {need for entry in criteria for need in needs(entry.name)})


def scores_of(entry, groups, stats):
    """Per module, the scores of its channels."""
    return {id.split(".")[0]: values for id, values in score(groups, entry.name, stats).items()}


@every
@pytest.mark.parametrize("form", FORMS)
def test_a_computed_weight_scores_as_a_plain_one(form, entry):
    found, expected = (scores_of(entry, *looked_at(form, twin)) for twin in (False, True))
    assert set(found) == set(expected) >= {"a"}
    for id, values in expected.items():
        torch.testing.assert_close(found[id], values, rtol=1e-8, atol=1e-10 * float(values.abs().max()))


def convolutions(wrap) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(54, 4)).double()
    for at in (0, 2):
        wrap(net[at])
    return net


def mask_(layer: nn.Module) -> None:
    prune.random_unstructured(layer, "weight", 0.5)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("criterion", ["l2", "taylor", "synflow", "obd", "wanda"])
@pytest.mark.parametrize(
    "wrap",
    [mask_, nn.utils.weight_norm, parametrizations.weight_norm, nn.utils.spectral_norm, parametrizations.spectral_norm],
)
def test_torchs_own_computed_weights_score_as_plain_ones(wrap, criterion):
    model, twin = convolutions(wrap).eval(), convolutions(lambda layer: None)
    data = [(torch.randn(5, 3, 7, 7, dtype=torch.float64), torch.arange(5) % 4)]
    model(data[0][0])
    for at in (0, 2):
        twin[at].weight.data, twin[at].bias.data = model[at].weight.detach().clone(), model[at].bias.detach()
    twin[4] = model[4]
    found = []
    for net in (model, twin):
        groups = prunus.trace(net, data[0][0][:1])
        found.append(score(groups, criterion, collect(net, groups, data, needs(criterion))))
    assert len(found[0]) == len(found[1]) == 2
    for a, b in zip(*(list(scores.values()) for scores in found)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=0)


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 16)
        self.attend = nn.MultiheadAttention(16, 4, batch_first=True)
        self.last = nn.Linear(16, 3)

    def forward(self, x, memory):
        return self.last(self.attend(self.first(x), memory, memory, need_weights=False)[0])


class Decodes(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 16)
        self.layer = nn.TransformerDecoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.last = nn.Linear(16, 3)

    def forward(self, x, memory):
        return self.last(self.layer(self.first(x), memory))


@pytest.mark.parametrize("network", [Attends, Decodes])
def test_a_packed_attention_is_scored_in_every_group_and_cut(network):
    torch.manual_seed(0)
    model, inputs = network(), (torch.randn(2, 4, 5), torch.randn(2, 6, 16))

    def loss(out, batch):
        return out.square().mean()

    groups = prunus.trace(model, inputs, in_place=False)
    stats = collect(model, groups, [(inputs, 0)], needs("taylor"), loss)
    for criterion in ("l2", "taylor"):
        assert set(score(groups, criterion, stats)) == {g.id for g in groups} >= {groups[0].id}
    report = prunus.prune_(model, inputs, budget=Budget(params=0.7), criterion="taylor", data=[(inputs, 0)], loss=loss)
    assert report.after["params"] <= 0.7 * report.before["params"] and report.verified.max_relative_error < 1e-12


def test_the_pieces_of_a_packed_attention_hold_its_gradient():
    torch.manual_seed(0)
    model, inputs = Attends(), (torch.randn(2, 4, 5), torch.randn(2, 6, 16))
    groups = prunus.trace(model, inputs, in_place=False)
    stats = collect(model, groups, [(inputs, 0)], {"grad"}, lambda out, batch: out.square().mean())
    model(*inputs).square().mean().backward()
    whole = torch.cat([stats.kinds["grad"][name] for name in ("attend:weight", "attend:weight#2")])
    torch.testing.assert_close(whole, model.attend.in_proj_weight.grad, rtol=1e-4, atol=1e-7)


def test_networks_with_standardised_weights_are_pruned():
    declare_torchvision_operators()
    layers = pytest.importorskip("timm.layers")
    torch.manual_seed(0)
    model = nn.Sequential(
        *(layers.ScaledStdConv2d(3, 8, 3), nn.ReLU(), layers.ScaledStdConv2d(8, 6, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    )
    x = torch.randn(2, 3, 5, 5)
    groups = prunus.trace(model, x)
    assert set(score(groups, "l2")) == {"0", "2"}
    report = prunus.prune_(model, x, budget=Budget(macs=0.6), criterion="taylor", data=[(x, torch.tensor([0, 1]))])
    assert report.after["macs"] <= 0.6 * report.before["macs"] and report.verified.max_relative_error < 1e-12
    assert not any("scores none" in f.why or "reads" in f.why for f in report.left_alone)


class Rank(nn.Module):  # a sum of a weight and a product of two, as after LoRA
    def __init__(self):
        super().__init__()
        self.weight, self.down, self.up = drawn(6, 4, seed=1), drawn(3, 4, seed=2), drawn(6, 3, seed=3)
        self.last = nn.Linear(6, 2, dtype=torch.float64)

    def forward(self, x):
        return self.last(F.linear(x, self.weight + self.up @ self.down).relu())


def test_what_a_weight_is_made_of_keeps_a_score_of_its_own():
    model = Rank()
    groups = prunus.trace(model, torch.randn(2, 4, dtype=torch.float64))
    scores = score(groups, "l2", normalize="none")
    whole = (model.weight + model.up @ model.down).detach()
    layer, other = sorted(groups, key=lambda g: -g.units)
    torch.testing.assert_close(scores[layer.id], whole.norm(dim=1))
    assert other.units == 3  # the rank is a group, and no weight that a layer reads has it
    assert other.used is None and {s.name for s in other.slices} == {"up", "down"}


def test_values_follow_the_parameters():
    model = Network(Masked)
    groups = prunus.trace(model, batches()[0][0][:1])
    first = score(groups, "l1", normalize="none")
    model.a.weight.data.mul_(2)
    second = score(groups, "l1", normalize="none")
    torch.testing.assert_close(second[groups[0].id], 2 * first[groups[0].id])


class Written(nn.Module):  # into a tensor of its own, piece by piece: not followed
    def __init__(self):
        super().__init__()
        self.one, self.two = drawn(6, 2, seed=1), drawn(6, 3, seed=2)
        self.last = nn.Linear(6, 2, dtype=torch.float64)

    def forward(self, x):
        weight = torch.zeros(6, 5, dtype=torch.float64)
        weight[:, :2], weight[:, 2:] = self.one, self.two
        return self.last(F.linear(x, weight).relu())


def test_a_weight_that_is_written_piece_by_piece_is_not_mistaken_for_zeros():
    model = Written()
    groups = prunus.trace(model, torch.randn(2, 5, dtype=torch.float64))
    for group in groups.seen():
        for s in group.slices:
            assert s.weight.abs().sum() > 0


def test_what_would_write_into_a_computed_weight_leaves_it_alone():
    model, x = convolutions(parametrizations.weight_norm).eval(), torch.randn(2, 3, 7, 7, dtype=torch.float64)
    plain = convolutions(lambda layer: None).eval()
    notes = [
        prunus.prune_(net, x, budget=Budget(macs=0.6), merge=True).notes for net in (model, plain)
    ]  # v of weight_norm is no place for the sum of two columns
    assert sum("forward computes what reads it" in note for note in notes[0]) == 1
    assert not any("forward computes" in note for note in notes[1])


class Mask(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.register_buffer("keep", torch.rand_like(weight) < 0.7)

    def forward(self, weight):
        return weight * self.keep


class Sum(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.more = nn.Parameter(torch.randn_like(weight) / 9)

    def forward(self, weight):
        return weight + self.more


class Standard(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(len(weight), *[1] * (weight.dim() - 1), dtype=weight.dtype))

    def forward(self, weight):
        spread, mean = torch.var_mean(weight.flatten(1), 1, correction=0, keepdim=True)
        return ((weight.flatten(1) - mean) * (spread + 1e-3).rsqrt()).view_as(weight) * self.gain


COMPUTED = (None, Mask, Sum, Standard)
LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@settings(
    max_examples=int(os.environ.get("PRUNUS_EXAMPLES", 6)), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 11)), min_size=1, max_size=6),
    st.lists(st.integers(0, 3), min_size=12, max_size=12),
    st.integers(0, 99),
)
def test_random_networks_with_computed_weights_score_and_cut_as_plain_ones(steps, forms, seed):
    torch.manual_seed(seed)
    model = randomise(Random(steps, 8), seed).double()
    twin = copy.deepcopy(model)
    used = set()
    pairs = [pair for pair in zip(model.modules(), twin.modules()) if isinstance(pair[0], LAYERS)]
    for (layer, plain), form in zip(pairs, forms):
        made = COMPUTED[form]
        used.add(made)
        if made is not None:
            nn.utils.parametrize.register_parametrization(layer, "weight", made(layer.weight.detach()))
            plain.weight.data = layer.weight.detach().clone()
    data = [(torch.randn(3, 3, 6, 6, dtype=torch.float64), torch.arange(3))]
    found = []
    for net in (model.eval(), twin.eval()):
        groups = prunus.trace(net, data[0][0])
        stats = collect(net, groups, data, {"grad", "fisher"})
        found.append([score(groups, c, stats) if len(groups) else {} for c in ("l2", "taylor-weight", "obd")])
    for a, b in zip(*found):
        assert [len(v) for v in a.values()] == [len(v) for v in b.values()]
        for mine, theirs in zip(a.values(), b.values()):
            torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-9 * float(theirs.abs().max()))
    groups = prunus.trace(model, data[0][0])
    if len(groups):
        try:
            report = prunus.shrink_(model, groups, groups.plan(random_keep(groups, seed)))
        except VerificationError:  # zeros before a mean is taken off are none behind it: no silence to compare with
            assert Standard in used
        else:
            assert report.verified.max_relative_error < 1e-9


class Differs(nn.Module):
    """A weight that is computed in another way on the data than on the example."""

    def __init__(self):
        super().__init__()
        self.first, self.last = Masked(6, 4), nn.Linear(6, 3, dtype=torch.float64)

    def forward(self, x):
        weight = self.first() if float(x.abs().sum()) == 0 else self.first.weight * (self.first.mask * 1.0)
        return self.last(F.linear(x, weight).relu())


@pytest.mark.parametrize("criterion", ["taylor-weight", "woodfisher", "obd", "obd-hutchinson"])
def test_a_weight_that_the_data_do_not_meet_is_no_zero(criterion):
    model = Differs()
    groups = prunus.trace(model, torch.zeros(1, 4, dtype=torch.float64))
    data = [(torch.randn(4, 4, dtype=torch.float64), torch.arange(4) % 3)]
    stats = collect(model, groups, data, needs(criterion))
    with pytest.raises(InputError, match="scores none of the 1 groups"):
        score(groups, criterion, stats)
