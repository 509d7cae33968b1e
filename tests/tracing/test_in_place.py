"""What a model's own code asks of a cut in place: attributes, proportions, numbers made of sizes, parts."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunus
from prunus.allocators import allocate
from tests.keeping import random_keep

X = torch.randn(2, 5, 12)


class Attention(nn.Module):
    """Self-attention between two linear layers, in the ways that libraries write it."""

    def __init__(self, way: str, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.way, self.heads, self.size = way, heads, width // heads
        self.embed, self.qkv = nn.Linear(12, width), nn.Linear(width, 3 * width)
        self.norm, self.proj, self.head = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, 3)
        self.scale = self.size**-0.5

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x))
        b, n, c = x.shape
        size = {"tied": c // self.heads}.get(self.way, self.size)
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, size).permute(2, 0, 3, 1, 4).unbind(0)
        if self.way == "stored":
            out = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        elif self.way == "computed":
            out = (q @ k.transpose(-2, -1) / math.sqrt(self.size)).softmax(-1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        merged = out.transpose(1, 2).reshape(b, n, c if self.way == "tied" else -1)
        return self.head(x + self.proj(merged) if self.way == "tied" else self.proj(merged))


def attention(way: str) -> nn.Module:
    torch.manual_seed(0)
    net = Attention(way).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return net


def by_hand(net: Attention, x: Tensor, kept: dict[str, list[int]]) -> Tensor:
    """The attention with the scale of the original, on the kept (head, dimension) pairs alone, by plain indexing."""
    x = net.norm(net.embed(x))
    b, n, _ = x.shape
    qkv = net.qkv(x).reshape(b, n, 3, net.heads, net.size)
    outs = torch.zeros(b, n, net.heads, net.size, dtype=x.dtype)
    for h in kept["heads"]:
        d = kept[f"{h}"]
        q, k, v = (qkv[:, :, i, h][..., d] for i in range(3))
        outs[:, :, h, d] = (q @ k.transpose(-2, -1) * net.scale).softmax(-1) @ v
    return net.head(net.proj(outs.flatten(2)))


@pytest.mark.parametrize("way", ["stored", "computed", "default"])
def test_heads_choose_their_own_dimensions_and_the_scale_stays_that_of_the_original(way):
    net = attention(way)
    groups = prunus.trace(net, X)
    parts = {g.id: g.parts for g in groups}
    assert parts["qkv/heads"] == 1 and parts["qkv/head_dim"] == 4
    assert bool(groups.folds) is (way != "stored")
    keep = torch.ones(groups.units, dtype=torch.bool)
    heads, dims = groups["qkv/heads"], groups["qkv/head_dim"]
    keep[heads.offset + 2] = False
    chosen = {"heads": [0, 1, 3], "0": [0, 1, 5], "1": [2, 3, 4], "3": [0, 2, 4]}
    rows = torch.zeros(4, 6, dtype=torch.bool)
    for h in range(4):
        rows[h, chosen.get(f"{h}", [0, 1, 2])] = True
    keep[dims.offset : dims.offset + dims.units] = rows.flatten()
    expected = by_hand(copy.deepcopy(net).double(), X.double(), chosen)
    report = prunus.shrink_(net, groups, groups.plan(keep))
    assert report.in_place and report.verified.max_relative_error < 1e-12
    assert net.qkv.weight.shape == (27, 24) and (net.heads, net.size) == (3, 3)
    assert torch.allclose(net.double()(X.double()), expected, rtol=1e-5, atol=1e-6)  # folded weights are rounded


def test_as_many_heads_as_dimensions_are_told_apart():
    torch.manual_seed(0)
    groups = prunus.trace(Attention("stored", width=16, heads=4).eval(), X)
    assert (groups["qkv/heads"].units, groups["qkv/head_dim"].units, groups["qkv/head_dim"].parts) == (4, 16, 4)


def test_choices_that_would_interleave_are_the_same_in_every_part():
    """A channel shuffle lays the first channels of all groups before the second ones."""

    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            n, c, h, w = x.shape
            return self.b(x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w))

    net = Shuffled().eval()
    groups = prunus.trace(net, torch.randn(2, 3, 4, 4), in_place=False)
    assert all(g.parts == 1 for g in groups)
    report = prunus.shrink_(net, groups, groups.plan(random_keep(groups, 0)))
    assert report.verified.max_relative_error < 1e-10 and not report.in_place


class Repeated(nn.Module):
    """Asks whether it has one of something, as code that repeats key heads does."""

    def __init__(self, repeats: int) -> None:
        super().__init__()
        self.repeats, self.a, self.b = repeats, nn.Linear(12, 4 * repeats), nn.Linear(4 * repeats, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).unflatten(-1, (-1, self.repeats))
        if self.repeats == 1:
            raise RuntimeError("not meant for one")
        return self.b(x.flatten(-2))


def test_code_that_goes_another_way_at_one_keeps_two():
    assert [(g.id, g.units) for g in prunus.trace(Repeated(2), X)] == [("a", 4)]
    groups = prunus.trace(Repeated(3), X)
    repeats = groups["a/head_dim"]
    assert (repeats.count, repeats.parts, repeats.floor) == (3, 4, 2)
    scores = {repeats.id: torch.zeros(repeats.units)}
    plan = allocate(groups, scores, prunus.Budget(params=0.75))
    assert len(plan.groups[repeats.id].kept) == 2 * repeats.parts
    with pytest.raises(prunus.BudgetError, match="least reachable"):
        allocate(groups, scores, prunus.Budget(params=0.5))


def test_a_plan_with_uneven_parts_is_refused():
    net = attention("stored")
    groups = prunus.trace(net, X)
    keep = torch.ones(groups.units, dtype=torch.bool)
    keep[groups["qkv/head_dim"].offset] = False
    with pytest.raises(prunus.InputError, match="as many of each"):
        prunus.shrink_(net, groups, groups.plan(keep))
    assert net.qkv.weight.shape == (72, 24)


def test_sizes_that_the_code_divides_stay_in_proportion():
    net = attention("tied")
    groups = prunus.trace(net, X)
    (tied,) = groups.proportions
    assert "embed" in tied and len(tied) == 2
    plan = allocate(groups, prunus.score(groups, "l1"), prunus.Budget(params=0.4))
    kept = {id: len(plan.groups[id].kept) / plan.groups[id].units for id in tied}
    assert len(set(kept.values())) == 1 and set(kept.values()) < {1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6}
    report = prunus.shrink_(net, groups, plan)
    assert report.verified.max_relative_error < 1e-7 and not report.verified.exact  # the norm is over the kept
    assert report.after["params"] <= 0.4 * report.before["params"]


def test_one_step_less_of_a_proportion_would_exceed_the_budget():
    groups = prunus.trace(attention("tied"), X)
    scores = {g.id: torch.arange(g.units, dtype=torch.float64) + 1 for g in groups if g.id in groups.proportions[0]}
    limit = 0.5
    plan = allocate(groups, scores, prunus.Budget(params=limit))
    keep = groups.mask(plan)
    assert groups.costs(keep)["params"] <= limit * groups.costs()["params"]
    back = keep.clone()
    for id, quantum in zip(groups.proportions[0], groups.quanta(groups.proportions[0])):
        g = groups[id]
        gone = (~keep[g.offset : g.offset + g.units]).nonzero().flatten()
        back[g.offset + gone[-quantum:]] = True  # the step that went last
    groups.check_proportions(back)
    assert groups.costs(back)["params"] > limit * groups.costs()["params"]


def test_uniform_takes_the_same_share_of_a_product_as_of_channels():
    groups = prunus.trace(attention("stored"), X)
    assert groups.factors["qkv/heads"] == groups.factors["qkv/head_dim"] == 2 and groups.factors["embed"] == 1
    plan = allocate(groups, prunus.score(groups, "l1"), prunus.Budget(params=0.5), allocator="uniform")
    left = {id: len(g.kept) / g.units for id, g in plan.groups.items()}
    assert left["qkv/heads"] * left["qkv/head_dim"] == pytest.approx(left["embed"], abs=0.2)


def test_every_kind_of_group_has_its_own_floor():
    groups = prunus.trace(attention("stored"), X)
    scores = prunus.score(groups, "l1")
    plan = allocate(groups, scores, prunus.Budget(params=0.45), floor={"*": 0.1, "*/heads": 1.0})
    assert len(plan.groups["qkv/heads"].kept) == 4
    with pytest.raises(prunus.UnknownNameError, match=r"matches no group"):
        allocate(groups, scores, prunus.Budget(params=0.45), floor={"*/heds": 1.0})


def test_norms_over_cut_channels_take_the_statistics_of_the_kept():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 6, 1), nn.Flatten(2), nn.Softmax(1)
    ).eval()
    groups = prunus.trace(net, torch.randn(2, 3, 4, 4))
    assert {g.id: (g.units, g.parts) for g in groups} == {"0/groups": (4, 1), "0/group_width": (8, 4)}
    keep = torch.ones(groups.units, dtype=torch.bool)
    keep[[0, 4, 6, 9, 11]] = False  # the first group; one channel of every group
    report = prunus.shrink_(net, groups, groups.plan(keep))
    assert net[1].num_groups == 3 and net[0].out_channels == 3 and not report.verified.exact


def test_integers_in_tuples_and_configurations_follow():
    class Config:
        width = 0

        def __init__(self) -> None:
            self.width = 16

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config, self.a, self.b = Config(), nn.Linear(12, 16), nn.Linear(16, 3)
            self.norm = nn.LayerNorm(16)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.norm(self.a(x).view(-1, self.config.width)))

    net = Net()
    report = prunus.prune_(net, X, budget=prunus.Budget(params=0.5))
    assert net.config.width == net.norm.normalized_shape[0] == net.a.out_features < 16
    assert {e.attribute for e in report.plan.edits} >= {"config.width", "normalized_shape[0]"}


def test_a_size_that_only_a_check_compares_follows():
    class Checked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width, self.a, self.b = 16, nn.Linear(12, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            assert x.shape[-1] == self.width, "the width is wrong"
            return self.b(x)

    net = Checked()
    prunus.prune_(net, X, budget=prunus.Budget(params=0.5))
    assert net.width == net.a.out_features < 16


def test_what_no_cut_in_place_can_reach_is_rewritten():
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(12, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).view(-1, 16))

    net = Written()
    before = copy.deepcopy(net.state_dict())
    report = prunus.prune_(net, X, budget=prunus.Budget(params=0.5))
    assert not report.in_place and isinstance(report.model, prunus.RewrittenModule)
    assert not report.verified.in_place and report.verified.max_relative_error < 1e-7
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert report.model.a.weight.shape[0] < 16 and "recorded graph" in str(report)


def test_a_wrong_cut_in_place_is_left_out_and_said():
    """The scale hides from the tracer: the proof finds it, and the rest is cut without."""

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x).relu()
            x = x * torch.tensor([float(str(len(x.flatten(0, -2)[0])))])
            return self.d(self.c(self.b(x).relu()).relu())

    report = prunus.prune_(Hidden(), X, budget=prunus.Budget(params=0.6))
    assert report.in_place and "a" not in report.plan.groups
    assert any(f.what == "a" and "something else" in f.why for f in report.left_alone)


@pytest.mark.parametrize("way", ["stored", "computed", "default", "tied"])
@pytest.mark.parametrize("seed", range(3))
def test_random_plans_of_attention_are_right_and_cost_what_was_foretold(way, seed):
    net = attention(way)
    groups = prunus.trace(net, X)
    keep = random_keep(groups, seed)
    report = prunus.shrink_(net, groups, groups.plan(keep))
    assert report.verified.max_relative_error < 1e-10
    assert sum(p.numel() for p in net.parameters()) == groups.costs(keep)["params"]
