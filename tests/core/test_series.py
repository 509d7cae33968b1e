"""Which slices hold the gate of a unit, where layers stand in series, side by side, or are multiplied."""

import pytest
import torch
from torch import nn

import prunus
from prunus.core.series import Series, once
from prunus.criteria import score
from prunus.observe import Stats, collect

GATE = ("out", "bias", "depthwise", "norm_scale", "norm_shift", "in")


class Net(nn.Module):
    """Layers by name, and a forward of them: images (N, 3, 4, 4), or tokens (N, 5, 8), -> (N, 3)."""

    def __init__(self, forward, **layers: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            self.add_module(name, layer)
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=draw) * 0.4 + 0.1)
        self.eval()

    def forward(self, x):
        return self.run(self, x)


def conv(into: int, out: int, kernel: int = 1, **kwargs) -> nn.Module:
    return nn.Conv2d(into, out, kernel, padding=kernel // 2, **{"bias": False, **kwargs})


def images() -> torch.Tensor:
    return torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def tokens() -> torch.Tensor:
    return torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(1))


def counted(model: nn.Module, x: torch.Tensor, id: str, roles=GATE) -> dict[str, float]:
    """Names (and roles of those that read) of the slices that count, and their shares."""
    groups = prunus.trace(model, x).seen()
    found = zip(*once(groups, groups[id], roles))
    return {f"{s.name} in" if s.role == "in" else s.name: share for s, share in found}


def whole(*names: str) -> dict[str, float]:
    return dict.fromkeys(names, 1.0)


def pooled(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return layer(x.mean((2, 3)))


def inverted(m, x):
    x = m.na(m.a(x)).relu()
    return pooled(m.fc, m.nd(m.d(x)).relu())


INVERTED = {"a": conv(3, 6), "na": nn.BatchNorm2d(6), "d": conv(6, 6, 3, groups=6), "nd": nn.BatchNorm2d(6)}


def test_of_layers_in_series_the_last_one_counts():
    net = Net(inverted, **INVERTED, fc=nn.Linear(6, 3))
    assert counted(net, images(), "a") == whole("nd.weight", "nd.bias")
    assert counted(net, images(), "a", ("out", "bias", "depthwise")) == whole("a.weight")
    assert counted(net, images(), "a", ("out", "bias")) == whole("a.weight")


def test_a_depthwise_kernel_gives_the_gate_on_and_its_bias_is_added():
    net = Net(lambda m, x: pooled(m.fc, m.d(m.a(x)).relu()), a=conv(3, 6, bias=True),
              d=conv(6, 6, 3, groups=6, bias=True), fc=nn.Linear(6, 3))  # fmt: skip
    assert counted(net, images(), "a") == whole("a.weight", "a.bias", "d.bias")
    assert counted(net, images(), "a", ("bias", "depthwise")) == whole("d.weight", "d.bias")  # nothing else makes it


def test_parts_of_a_sum_count_side_by_side_with_a_norm_or_without():
    layers = {"a": conv(3, 6), "na": nn.BatchNorm2d(6), "b": conv(3, 6), "fc": nn.Linear(6, 3)}
    net = Net(lambda m, x: pooled(m.fc, (m.na(m.a(x)) + m.b(x)).relu()), **layers)
    assert counted(net, images(), "a") == whole("na.weight", "na.bias", "b.weight")


def test_where_a_part_of_a_sum_is_no_slice_that_counts_what_reads_the_sum_does():
    net = Net(lambda m, x: m.fc((m.a(x) + m.places).relu().mean(1)), a=nn.Linear(8, 6), fc=nn.Linear(6, 3))
    net.places = nn.Parameter(torch.ones(1, 5, 6))
    assert counted(net, tokens(), "a") == whole("fc.weight in")
    two = Net(lambda m, x: pooled(m.fc, m.n(m.na(m.a(x)) + m.b(x)).relu()), a=conv(3, 6), na=nn.BatchNorm2d(6),
              b=conv(3, 6), n=nn.BatchNorm2d(6), fc=nn.Linear(6, 3))  # fmt: skip
    with torch.no_grad():
        two.na.weight.zero_()
    scales = score(prunus.trace(two, images()), "bn-gamma")["a"]  # the branch without a norm is not dead
    torch.testing.assert_close(scales, two.n.weight.detach().abs().double())


def test_a_bias_that_is_added_by_itself_is_a_part_of_the_sum():
    net = Net(lambda m, x: m.fc((x @ m.a.weight.T + m.a.bias).relu().mean(1)), a=nn.Linear(8, 6), fc=nn.Linear(6, 3))
    assert counted(net, tokens(), "a") == whole("a.weight", "a.bias")


def test_norms_in_front_of_the_layers_that_read_a_stream_count_and_what_reads_it_without_one():
    def stream(m, x, last):
        x = m.a(x)
        x = x + m.d(m.u(m.n(x)).relu())
        return m.fc(last(m, x).mean(1))

    layers = {"a": nn.Linear(8, 6), "n": nn.LayerNorm(6), "u": nn.Linear(6, 7), "d": nn.Linear(7, 6)}
    normed = Net(lambda m, x: stream(m, x, lambda m, x: m.f(x)), **layers, f=nn.LayerNorm(6), fc=nn.Linear(6, 3))
    assert counted(normed, tokens(), "a") == whole("n.weight", "n.bias", "f.weight", "f.bias")
    bare = Net(lambda m, x: stream(m, x, lambda m, x: x), **layers, fc=nn.Linear(6, 3))
    assert counted(bare, tokens(), "a") == whole("n.weight", "n.bias", "fc.weight in")


def test_where_one_of_two_ways_goes_through_another_layer_what_reads_the_other_way_counts():
    def fork(m, x):
        x = m.a(x).relu()
        return pooled(m.fc, m.r(x)) + pooled(m.fc2, m.d(x).relu())

    net = Net(fork, a=conv(3, 6), d=conv(6, 6, 3, groups=6), r=conv(6, 5), fc=nn.Linear(5, 3), fc2=nn.Linear(6, 3))
    assert counted(net, images(), "a") == whole("a.weight")
    normed = Net(fork, a=nn.Sequential(conv(3, 6)), d=nn.Sequential(conv(6, 6, 3, groups=6), nn.BatchNorm2d(6)),
                 r=conv(6, 5), fc=nn.Linear(5, 3), fc2=nn.Linear(6, 3))  # fmt: skip
    assert counted(normed, images(), "a.0") == whole("d.1.weight", "d.1.bias", "r.weight in")


def gated(m, x):
    return m.fc(m.down(nn.functional.silu(m.gate(x)) * m.up(x)).mean(1))


GATED = {"gate": nn.Linear(8, 6), "up": nn.Linear(8, 6), "down": nn.Linear(6, 4), "fc": nn.Linear(4, 3)}


def test_of_a_product_what_reads_it_counts():
    assert counted(Net(gated, **GATED), tokens(), "gate") == whole("down.weight in")
    packed = Net(lambda m, x: m.fc(m.down(nn.functional.glu(m.both(x))).mean(1)), both=nn.Linear(8, 12),
                 down=nn.Linear(6, 4), fc=nn.Linear(4, 3))  # fmt: skip
    assert counted(packed, tokens(), "both") == whole("down.weight in")
    squared = Net(lambda m, x: m.fc(m.a(x).relu().pow(2).mean(1)), a=nn.Linear(8, 6), fc=nn.Linear(6, 3))
    assert counted(squared, tokens(), "a") == whole("fc.weight in")


def test_a_norm_behind_a_product_counts():
    net = Net(lambda m, x: m.fc(m.n(m.gate(x).relu() * m.up(x)).mean(1)), gate=nn.Linear(8, 6), up=nn.Linear(8, 6),
              n=nn.LayerNorm(6), fc=nn.Linear(6, 3))  # fmt: skip
    assert counted(net, tokens(), "gate") == whole("n.weight", "n.bias")


def squeezed(m, x):
    x = m.n(m.a(x)).relu()
    return pooled(m.fc, m.b(x * m.up(m.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()).relu())


def test_where_channels_gate_themselves_all_that_reads_them_counts():
    net = Net(squeezed, a=conv(3, 6), n=nn.BatchNorm2d(6), down=conv(6, 4), up=conv(4, 6), b=conv(6, 5),
              fc=nn.Linear(5, 3))  # fmt: skip
    assert counted(net, images(), "a") == whole("down.weight in", "b.weight in")


def attention(m, x):
    q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in m.parts(x))
    return m.fc(m.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1))


class Split(nn.ModuleList):
    def forward(self, x):
        return [layer(x) for layer in self]


class Packed(nn.Linear):
    def forward(self, x):
        return super().forward(x).chunk(3, -1)


def test_query_and_key_count_half_each():
    net = Net(attention, parts=Split(nn.Linear(8, 8) for _ in range(3)), out=nn.Linear(8, 4), fc=nn.Linear(4, 3))
    halves = {f"parts.{i}.{name}": 0.5 for i in range(2) for name in ("weight", "bias")}
    assert counted(net, tokens(), "parts.0") == halves
    assert counted(net, tokens(), "parts.2") == whole("parts.2.weight", "parts.2.bias")


def test_of_packed_queries_keys_and_values_what_reads_the_values_counts():
    net = Net(attention, parts=Packed(8, 24), out=nn.Linear(8, 4), fc=nn.Linear(4, 3))
    assert counted(net, tokens(), "parts") == whole("out.weight in")


def test_groups_without_operators_count_all_that_makes_a_unit():
    from tests.hand_built import chain

    _, groups = chain()
    slices, shares = once(groups, groups["conv1"], GATE)
    assert [s.name for s in slices] == ["conv1.weight", "bn1.weight", "bn1.bias"] and shares == [1.0] * 3


NETWORKS = {
    "inverted": (lambda: Net(inverted, **INVERTED, fc=nn.Linear(6, 3)), images),
    "folded": (lambda: Net(lambda m, x: pooled(m.fc, m.d(m.a(x).relu()).relu()), a=conv(3, 6, bias=True),
                           d=conv(6, 6, 3, groups=6, bias=True), fc=nn.Linear(6, 3)), images),
    "gated": (lambda: Net(gated, **GATED), tokens),
    "squeezed": (lambda: Net(squeezed, a=conv(3, 6), n=nn.BatchNorm2d(6), down=conv(6, 4), up=conv(4, 6),
                             b=conv(6, 5), fc=nn.Linear(5, 3)), images),
    "attention": (lambda: Net(attention, parts=Split(nn.Linear(8, 8) for _ in range(3)), out=nn.Linear(8, 4),
                              fc=nn.Linear(4, 3)), tokens),
    "packed": (lambda: Net(attention, parts=Packed(8, 24), out=nn.Linear(8, 4), fc=nn.Linear(4, 3)), tokens),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gate_of_the_weights_is_that_of_the_activations(name):
    """Where only ReLU and linear operators lie between: the same derivative, found in two ways."""
    make, draw = NETWORKS[name]
    torch.manual_seed(0)
    net, x, y = make(), draw(), torch.tensor([0, 1, 2, 1])
    groups = prunus.trace(net, x)
    stats = collect(net, groups, [(x, y)], {"grad", "gate"})
    by_weights = score(groups, "snip", stats)
    for id, gate in stats.groups["gate"].items():
        torch.testing.assert_close(by_weights[id], gate.double().mean(0).abs(), rtol=1e-3, atol=1e-6)


def test_the_derivative_by_a_gate_on_a_product_is_counted_once():
    """By hand: loss s(u, v) with one unit, u = 2, v = 3, read by 5: the gate's derivative is 30 times the slope."""
    net = Net(lambda m, x: m.read(m.u(x) * m.v(x)), u=nn.Linear(1, 2, bias=False), v=nn.Linear(1, 2, bias=False),
              read=nn.Linear(2, 3, bias=False))  # fmt: skip
    with torch.no_grad():
        net.u.weight.fill_(2.0), net.v.weight.fill_(3.0), net.read.weight.fill_(5.0)
    x = torch.ones(1, 1)
    groups = prunus.trace(net, x)
    stats = collect(net, groups, [(x, x)], {"grad", "gate"}, loss=lambda out, batch: out[:, 0])
    assert stats.groups["gate"]["u"].tolist() == [[30.0, 30.0]]
    assert score(groups, "taylor", stats)["u"].tolist() == [900.0, 900.0]
    assert score(groups, "snip", stats)["u"].tolist() == [30.0, 30.0]


def test_scales_multiply_in_series_and_the_largest_counts_side_by_side():
    def two(m, x):
        x = m.na(m.a(x)).relu()
        return pooled(m.fc, (m.nd(m.d(x)) + m.nb(m.b(x))).relu())

    net = Net(two, **INVERTED, b=conv(6, 6, 3, groups=6), nb=nn.BatchNorm2d(6), fc=nn.Linear(6, 3))
    with torch.no_grad():
        net.na.weight.copy_(torch.tensor([2.0, 0.0, -1.0, 0.5, 3.0, 1.0]))
        net.nd.weight.copy_(torch.tensor([3.0, 5.0, 0.0, 2.0, 1.0, -4.0]))
        net.nb.weight.copy_(torch.tensor([-4.0, 1.0, 2.0, 1.0, 0.0, 1.0]))
    groups = prunus.trace(net, images())
    assert score(groups, "bn-gamma")["a"].tolist() == [8.0, 0.0, 2.0, 1.0, 3.0, 4.0]


def test_the_largest_of_the_ways_into_a_norm_and_of_the_slices_of_a_stage_counts():
    net = Net(lambda m, x: pooled(m.fc, m.n(m.na(m.a(x)) + m.nb(m.b(x))).relu()), a=conv(3, 3), na=nn.BatchNorm2d(3),
              b=conv(3, 3), nb=nn.BatchNorm2d(3), n=nn.BatchNorm2d(3), fc=nn.Linear(3, 3))  # fmt: skip
    with torch.no_grad():
        net.na.weight.copy_(torch.tensor([2.0, 0.0, 5.0]))
        net.nb.weight.copy_(torch.tensor([4.0, 1.0, 1.0]))
        net.n.weight.copy_(torch.tensor([3.0, 2.0, 1.0]))
    groups = prunus.trace(net, images())
    assert score(groups, "bn-gamma")["a"].tolist() == [12.0, 2.0, 5.0]
    series = Series(groups, groups["a"], GATE)
    terms = {s: torch.full((3,), 2.0 if s.name.endswith("weight") else 3.0) for s in groups["a"].slices}
    assert series.path(terms).tolist() == [2 * 3 * 3] * 3  # a filter, then norms whose shifts are larger
    terms |= {s: 7 * t for s, t in terms.items() if s.name in ("n.weight", "b.weight")}
    assert series.path(terms).tolist() == [14 * 3 * 14] * 3


def test_the_stages_of_a_group_know_what_lies_before_them():
    net = Net(inverted, **INVERTED, fc=nn.Linear(6, 3))
    groups = prunus.trace(net, images())
    series = Series(groups, groups["a"], GATE)
    names = [[s.name for s in stage.slices] for stage in series.stages.values()]
    assert names == [["a.weight"], ["na.weight", "na.bias"], ["nd.weight", "nd.bias"]]
    numbers = list(series.stages)
    assert [sorted(stage.before) for stage in series.stages.values()] == [[], *([n] for n in numbers[:-1])]
    (end,) = series.ends
    assert end.stages == {numbers[-1]} and end.above == set(numbers) and end.degree == 1
    assert [s.name for s in end.slices] == ["fc.weight"]


def test_shares_reach_the_score():
    net = Net(attention, parts=Split(nn.Linear(8, 8) for _ in range(3)), out=nn.Linear(8, 4), fc=nn.Linear(4, 3))
    groups = prunus.trace(net, tokens())
    query = next(g for g in groups if not g.with_role("in"))
    ones = Stats({"grad": {n: torch.ones_like(p) for n, p in net.named_parameters()}})
    made = sum(s.weight.sum(1) for s in query.with_role("out", "bias")).double()
    torch.testing.assert_close(score(groups, "snip", ones)[query.id], (made / 2).abs(), rtol=1e-6, atol=1e-6)
