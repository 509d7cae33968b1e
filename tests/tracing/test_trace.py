"""What `trace` finds in networks whose coupling is known."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import prunus
from prunus.tracing.trace import odd_cut
from tests.tracing.networks import Random


def sizes(groups):
    return {g.id: g.units for g in groups}


def chain():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 5)
    )


X = torch.randn(2, 3, 8, 8)


def test_a_chain_has_one_group_per_hidden_layer_with_its_roles():
    groups = prunus.trace(chain(), X)
    assert sizes(groups) == {"0": 8, "3": 6}
    roles = {s.name: s.role for s in groups["0"].slices}
    assert roles == {
        "0.weight": "out",
        "0.bias": "bias",
        "1.weight": "norm_scale",
        "1.bias": "norm_shift",
        "1.running_mean": "stat",
        "1.running_var": "stat",
        "3.weight": "in",
    }
    flat = next(s for s in groups["3"].slices if s.name == "5.weight")
    assert flat.index.tolist() == [list(range(16 * c, 16 * c + 16)) for c in range(6)]  # one channel, 4 x 4 columns


def test_residual_sum_couples_its_producers():
    groups = prunus.trace(Random([("residual", 2)], 8), X)
    assert sizes(groups) == {"stem": 8, "layers.0.0": 12}
    assert {s.name for s in groups["stem"].with_role("out")} == {"stem.weight", "layers.0.2.weight"}


def test_concat_shifts_the_columns():
    groups = prunus.trace(Random([("concat", 0), ("conv", 2)], 8), X)
    consumer = {
        g.id: s.index.ravel().tolist() for g in groups for s in g.slices if s.name == "layers.1.weight" and s.dim == 1
    }
    assert consumer == {"stem": list(range(8)), "layers.0": list(range(8, 12))}


def test_grouped_convolution_has_two_axes():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1, groups=4), nn.Conv2d(12, 2, 1))
    groups = prunus.trace(net, X)
    assert sizes(groups) == {"0/groups": 4, "0/group_width": 2, "1": 12}
    assert [g.parts for g in groups] == [1, 1, 4]  # what a group reads is read by index, what it makes is its own
    report = prunus.shrink_(net, groups, prunus.Plan({"0/groups": prunus.GroupPlan(4, (0, 2, 3))}))
    assert net[1].groups == 3 and net[1].weight.shape == (9, 2, 1, 1) and net[1].in_channels == 6
    assert report.plan.edits[0].attribute == "groups"


def test_ids_and_groups_do_not_depend_on_the_batch():
    one, three = (prunus.trace(chain(), torch.randn(n, 3, 8, 8)) for n in (1, 3))
    assert sizes(one) == sizes(three)
    assert one.costs() == three.costs()


def test_the_model_is_left_as_it_was():
    net = chain().train()
    net[1].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    attributes = {n: {k: type(v) for k, v in vars(m).items()} for n, m in net.named_modules()}
    prunus.trace(net, X)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert {n: {k: type(v) for k, v in vars(m).items()} for n, m in net.named_modules()} == attributes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_sizes_that_the_code_fixes_are_left_alone_with_the_reason():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.b(self.a(x))
            return self.c(x.reshape(x.shape[0], 8, -1).reshape(x.shape))

    groups = prunus.trace(Fixed(), X)
    assert sizes(groups) == {"a": 8}
    assert "the model's code fixes its size" in {f.what.split(":")[0]: f.why for f in groups.fixed}["b"]


def test_integer_attributes_that_forward_reads_follow():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.before = 3
            self.a, self.b, self.c = nn.Conv2d(3, 5, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.c(self.b(x) + nn.functional.pad(self.a(x), (0, 0, 0, 0, self.before, 0)))

    net = Padded()
    groups = prunus.trace(net, X)
    assert sizes(groups) == {"b": 3, "b#2": 5}  # b runs first; five of its channels meet those of a
    prunus.shrink_(net, groups, prunus.Plan({"b": prunus.GroupPlan(3, (1,)), "b#2": prunus.GroupPlan(5, (0, 4))}))
    assert net.before == 1 and net.b.weight.shape[0] == 3 and net.a.weight.shape[0] == 2


def test_an_operator_without_a_rule_freezes_what_it_touches_and_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.b(self.a(x))
            x = x.mean((2, 3))
            return self.c(torch.linalg.ldl_factor(x.t() @ x).LD[None, :, :1, None])

    groups = prunus.trace(Odd(), X)
    assert sizes(groups) == {"a": 8}
    assert any("no rule" in f.why for f in groups.fixed)


def test_tied_weights_are_one_tensor():
    net = chain()
    net.add_module("again", net[0])
    net = nn.ModuleDict({"a": nn.Conv2d(3, 3, 1), "b": nn.Conv2d(3, 3, 1), "c": nn.Conv2d(3, 2, 1)})
    net["b"].weight = net["a"].weight

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = net

        def forward(self, x):
            return self.layers["c"](self.layers["b"](self.layers["a"](x)))

    model = Tied()
    groups = prunus.trace(model, X)
    assert groups.ties == (("layers.a.weight", "layers.b.weight"),)
    assert groups.costs()["params"] == sum(p.numel() for p in model.parameters())
    assert sizes(groups) == {}  # its input is the picture, so its output, being its input too, stays


def test_what_only_training_visits_follows_what_it_reads():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 4, 1)
            self.aux = nn.Conv2d(3, 9, 1)

        def forward(self, x):
            y = self.a(x)
            if x.shape[0] > 1000:
                return self.aux(x)
            return (self.b(y), self.head(y)) if self.training else self.b(y)

    net = Branch()
    groups = prunus.trace(net, X)
    names = {s.name.split(".")[0] for g in groups for s in g.slices}
    assert names == {"a", "b", "head"}  # what training alone visits is coupled all the same
    report = prunus.shrink_(net, groups, prunus.Plan({"a": prunus.GroupPlan(8, (1, 2))}))
    assert report.verified.exact and [y.shape[1] for y in net.train()(X)] == [2, 4]


def test_freeze_and_only_take_names_globs_and_modules():
    net = chain()
    assert sizes(prunus.trace(net, X, freeze="3")) == {}  # its columns are group 0, its rows group 3
    assert sizes(prunus.trace(net, X, freeze=[net[5]])) == {"0": 8}
    assert sizes(prunus.trace(net, X, only="0")) == {"0": 8}
    assert sizes(prunus.trace(net, X, only=["[03]*"])) == {"0": 8, "3": 6}
    with pytest.raises(prunus.UnknownNameError, match="matches no module"):
        prunus.trace(net, X, freeze="conv7")
    with pytest.raises(prunus.InputError, match="not part of the model"):
        prunus.trace(net, X, only=nn.Linear(2, 2))


def test_a_forward_that_fails_is_one_clear_error():
    with pytest.raises(prunus.TraceError, match=r"failed on the example inputs \[\[1, 4, 8, 8\]\]"):
        prunus.trace(chain(), torch.zeros(1, 4, 8, 8))


def test_macs_of_any_plan_are_those_of_the_cut_network_by_another_count():
    from prunus.measure import macs

    net = Random([("grouped", 1), ("transposed", 1), ("depthwise", 1), ("concat", 1)], 8)
    groups = prunus.trace(net, X)
    keep = torch.ones(groups.units, dtype=torch.bool)
    keep[[g.offset + part * g.count for g in groups for part in range(g.parts) if g.count > 1]] = False
    foretold = groups.costs(keep)
    prunus.shrink_(net, groups, groups.plan(keep))
    assert macs(net, X).total == foretold["macs"]


def test_memory_formats_give_the_same_groups():
    def pooled():
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))

    plain = prunus.trace(pooled(), X)
    last = prunus.trace(pooled().to(memory_format=torch.channels_last), X.contiguous(memory_format=torch.channels_last))
    assert sizes(plain) == sizes(last) == {"0": 8}
    assert not any("no rule" in f.why for f in last.fixed)


def test_unequal_pieces_are_followed_index_by_index():
    class Pieces(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = 3, 5
            self.a = nn.Conv2d(3, 8, 1)
            self.b, self.c = nn.Conv2d(3, 2, 1), nn.Conv2d(5, 2, 1)

        def forward(self, x):
            left, right = self.a(x).split([self.first, self.second], 1)
            return self.b(left) + self.c(right)

    net = Pieces()
    groups = prunus.trace(net, X)
    where = {s.name: (g.units, g.with_role("out")[0].index.ravel().tolist()) for g in groups for s in g.with_role("in")}
    assert where == {"b.weight": (3, [0, 1, 2]), "c.weight": (5, [3, 4, 5, 6, 7])}
    prunus.shrink_(net, groups, groups.plan(torch.tensor([True, False, True, True, False, False, True, True])))
    assert (net.first, net.second) == (2, 3)


def test_grouped_transposed_convolutions_can_be_cut_on_both_sides():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 12, 3, groups=2), nn.Conv2d(12, 2, 1))
    groups = prunus.trace(net, X)
    assert sizes(groups) == {"0/groups": 2, "0/group_width": 8, "1": 6}
    assert {g.id: g.parts for g in groups} == {"0/groups": 1, "0/group_width": 2, "1": 1}


def test_no_plan_can_empty_a_dimension():
    """Two shuffles give three digits; where they do not form a product, something has to stay."""
    torch.manual_seed(3)
    net = Random([("conv", 2), ("shuffle", 0), ("shuffle", 0)], 8)
    for _ in range(3):
        groups = prunus.trace(net, X)
        keep = torch.zeros(groups.units, dtype=torch.bool)
        keep[[g.offset + (p + 1) * g.count - 1 for g in groups for p in range(g.parts)]] = True
        assert all(bool(rows.any()) for rows in groups.alive(keep))
        half = torch.arange(groups.units) % 3 > 0
        for g in groups:
            half[g.offset : g.offset + g.units] = (torch.arange(g.count) % 3 != 1).repeat(g.parts)
        prunus.shrink_(net, groups, groups.plan(half))


def test_trial_cuts_reach_the_rows_at_either_end():
    """Numbers of rows that the code counts from one side change in a trial, however few they are."""
    groups = prunus.trace(chain(), X)
    (a, b), end, beginning = groups, odd_cut(groups, 0), odd_cut(groups, 1)
    for group in (a, b):
        rows = slice(group.offset, group.offset + group.units)
        assert end[rows].nonzero().flatten().tolist() == [group.units - 2, group.units - 1]
        assert beginning[rows].nonzero().flatten().tolist() == [0, 1]


class Fn(nn.Module):
    """A network whose forward is a function of itself and its input."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def conv(i, o):
    return nn.Conv2d(i, o, 1)


def test_a_patch_stem_with_linears_is_followed():
    net = Fn(
        lambda s, x: s.d(s.b(s.a(x).flatten(2).transpose(1, 2)).relu()),
        a=conv(3, 8),
        b=nn.Linear(8, 16),
        d=nn.Linear(16, 2),
    )
    groups = prunus.trace(net, X)
    assert sizes(groups) == {"a": 8, "b": 16}
    keep = torch.arange(groups.units) % 3 > 0
    assert prunus.shrink_(net, groups, groups.plan(keep)).verified.max_relative_error < 1e-7


@pytest.mark.parametrize(
    ("net", "x"),
    [
        (nn.LSTM(6, 8, batch_first=True), torch.randn(2, 5, 6)),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 5, 8)),
    ],
)
def test_networks_of_other_kinds_are_traced_and_what_is_not_understood_is_left(net, x):
    groups = prunus.trace(net, x)
    assert groups.costs()["params"] == sum(p.numel() for p in net.parameters())


def test_outputs_in_dataclasses_are_outputs():
    @dataclasses.dataclass
    class Out:
        y: torch.Tensor

    net = Fn(lambda s, x: (s.b(y := s.a(x)), Out(s.c(y))), a=conv(3, 8), b=conv(8, 2), c=conv(8, 4))
    assert sizes(prunus.trace(net, X)) == {"a": 8}


def test_sizes_that_agree_by_chance_are_not_taken_for_equal():
    net = Fn(
        lambda s, x: s.c(s.q(x).view(-1, s.w).relu()) + s.d(s.k(x).view(-1, s.w).relu()),
        w=14,
        q=nn.Linear(6, 14),
        k=nn.Linear(6, 14),
        c=nn.Linear(14, 3),
        d=nn.Linear(14, 3),
    )
    x = torch.randn(2, 5, 6)
    groups = prunus.trace(net, x)
    assert groups.proportions == (("q", "k"),)  # both are viewed by the one attribute
    keep = torch.ones(groups.units, dtype=torch.bool)
    keep[2:14] = False
    with pytest.raises(prunus.InputError, match="in proportion"):
        prunus.shrink_(net, groups, groups.plan(keep))
    keep[14:26] = False
    report = prunus.shrink_(net, groups, groups.plan(keep))
    assert report.verified.max_relative_error < 1e-7 and net.w == 2


def test_caches_and_counters_of_forward_are_put_back():
    class Stateful(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.mask, self.calls = conv(3, 8), conv(8, 8), conv(8, 2), None, 0
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            self.seen.add_(1)
            if self.mask is None:
                self.mask = torch.ones(8, 8)
            return self.c(self.b(self.a(x)).relu() * self.mask)

    net = Stateful()
    groups = prunus.trace(net, X)
    prunus.shrink_(net, groups, groups.plan(torch.arange(groups.units) % 2 == 0))
    assert (net.mask, net.calls, float(net.seen)) == (None, 0, 0.0)


def test_freezing_one_name_of_a_tied_tensor_freezes_it():
    net = Fn(lambda s, x: s.c(s.a(x) + s.b(x).relu()), a=nn.Linear(8, 16), b=nn.Linear(8, 16), c=nn.Linear(16, 2))
    net.b.weight = net.a.weight
    x = torch.randn(2, 8)
    assert sizes(prunus.trace(net, x)) == {"a": 16}
    assert sizes(prunus.trace(net, x, freeze="b.weight")) == {}


def test_norms_sorts_and_squeezes_read_the_right_dimension():
    net = Fn(lambda s, x: s.b(s.a(x).norm(2, 2)[..., None]), a=conv(3, 8), b=conv(8, 2))
    assert sizes(prunus.trace(net, X)) == {"a": 8}
    net = Fn(lambda s, x: s.b(torch.sort(s.a(x), dim=1, stable=True).values), a=conv(3, 8), b=conv(8, 2))
    assert sizes(prunus.trace(net, X)) == {}
    net = Fn(lambda s, x: s.b(s.a(x.mean((2, 3), keepdim=True)).squeeze()), a=conv(3, 8), b=nn.Linear(8, 2))
    groups = prunus.trace(net, X)
    keep = torch.zeros(groups.units, dtype=torch.bool)
    keep[0] = True
    prunus.shrink_(net, groups, groups.plan(keep))
