"""Independence of channels and propagated importance, against numbers worked out by hand."""

import pytest
import torch
from torch import nn

import prunus
from prunus.criteria import score
from prunus.observe import collect
from prunus.observe.base import Seen
from prunus.observe.independence import lost_nuclear_norm
from prunus.observe.propagation import Tape, _back, all_paths, infinite_selection
from tests.criteria.test_closed_forms import attention
from tests.traced import batches, chain


def double(*rows: object) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_independence_is_what_the_nuclear_norm_loses():
    assert lost_nuclear_norm(torch.diag(double(3, 1))[None])[0].tolist() == pytest.approx([3, 1])
    a = double(3, 4, 12)
    twice = lost_nuclear_norm(torch.stack([a, a])[None])[0]
    assert twice.tolist() == pytest.approx([(2**0.5 - 1) * 13] * 2)


@pytest.mark.parametrize("shape", [(2, 5, 12), (2, 7, 3)])
def test_independence_is_that_of_singular_values(shape):
    torch.manual_seed(0)
    maps = torch.randn(shape, dtype=torch.float64)
    expected = torch.empty(shape[:2], dtype=torch.float64)
    for u in range(shape[1]):
        without = maps.clone()
        without[:, u] = 0
        expected[:, u] = torch.linalg.svdvals(maps).sum(-1) - torch.linalg.svdvals(without).sum(-1)
    torch.testing.assert_close(lost_nuclear_norm(maps), expected)


def test_chip_reads_maps_before_the_pooling_and_those_of_one_unit_together():
    model, groups = chain()
    model.eval()
    data = batches(2)
    found = score(groups, "chip", collect(model, groups, data, {"independence"}), normalize="none")
    x = torch.cat([x for x, _ in data])
    with torch.no_grad():
        first = model.bn1(model.conv1(x)).relu()
        second = model.bn2(model.conv2(first)).relu()
    for id, maps in (("conv1", first), ("conv2", second)):
        torch.testing.assert_close(found[id], lost_nuclear_norm(maps.flatten(2)).mean(0), rtol=1e-4, atol=1e-6)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2)).eval()
    groups = prunus.trace(net, x)
    found = score(groups, "chip", collect(net, groups, [x], {"independence"}), normalize="none")
    torch.testing.assert_close(found["0"], lost_nuclear_norm(net[0](x).detach().flatten(2)).mean(0))


def test_chip_takes_one_of_two_equal_channels_before_a_weaker_one_of_its_own():
    net = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        net[0].weight.copy_(double([2, 0, 0], [2, 0, 0], [0, 1.5, 0])[:, :, None, None])
    x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    groups = prunus.trace(net, x)
    scores = score(groups, "chip", collect(net, groups, [x], {"independence"}))["0"]
    assert scores[0].item() == pytest.approx(scores[1].item(), rel=1e-5) and scores[2] == scores.max()


def test_paths_of_every_length():
    assert all_paths(double([0, 1], [1, 0])).tolist() == pytest.approx([9, 9])
    a = double([0, 0.5, 0.2], [0.5, 0, 0.1], [0.2, 0.1, 0])
    r = 0.9 / torch.linalg.eigvalsh(a).abs().max()
    series = sum(torch.linalg.matrix_power(r * a, n) @ torch.ones(3).double() for n in range(1, 400))
    torch.testing.assert_close(all_paths(a), series)


def test_features_that_never_change_rank_last_and_copies_below_what_only_one_has():
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(400, 2, generator=draw, dtype=torch.float64)
    s = infinite_selection(torch.stack([z[:, 0], z[:, 0].exp(), z[:, 1], torch.ones(400).double()], 1), alpha=0.01)
    assert s.argmin() == 3 and s.argmax() == 2  # ranks see that the second is a copy of the first


def nisp_of(net: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    groups = prunus.trace(net, x)
    return score(groups, "nisp", collect(net, groups, [x], {"propagated"}), normalize="none")


def test_importance_goes_back_through_absolute_weights():
    calls = _linear_calls(torch.tensor([[1.0, -2.0], [-3.0, 4.0]]))
    steps = list(_back(*calls))
    first = calls[2][0].weight.detach().double().abs()
    given = {step.layer.name: step.given for step in steps}
    assert list(given) == ["3.weight", "2.weight", "0.weight"]
    for name, expected in zip(given, (double(1, 0), double(1, 2), double(1, 2) @ first)):
        torch.testing.assert_close(given[name], expected.expand(2, 2))
    assert steps[0].gave is None and [step.gave.tolist() for step in steps[1:]] == [[[1, 0]] * 2, [[1, 2]] * 2]


def test_importance_is_read_behind_the_norm():
    """A scale of a norm counts, and so does what it divides by: units are compared where the next layer reads them."""
    norm = nn.BatchNorm1d(3).eval()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([5.0, 1.0, -0.1]))
        norm.running_var.copy_(torch.tensor([1.0, 4.0, 9.0]))
    net = nn.Sequential(nn.Linear(2, 3), norm, nn.ReLU(), nn.Linear(3, 2, bias=False), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        net[3].weight.copy_(torch.tensor([[1.0, -2.0, 3.0], [-3.0, 2.0, 1.0]]))
    x = torch.randn(16, 2)
    with torch.no_grad():
        s = infinite_selection(net[:4](x))
    found, expected = nisp_of(net, x), net[3].weight.detach().double().abs().T @ s
    torch.testing.assert_close(found["0"], expected / expected.sum())
    torch.testing.assert_close(found["3"], s / s.sum())  # the features themselves are read by the last layer


def test_layers_that_read_the_same_add_up_and_places_are_averaged():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.c, self.last = nn.Linear(3, 3, bias=False), nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.stem(x).relu()
            y = y + (self.a(y) + self.b(y.flatten(1))).relu()  # a, b: the same place
            return self.last(self.c(y).relu())

    torch.manual_seed(0)
    net, x = Two(), torch.randn(16, 2)
    with torch.no_grad():
        y = net.stem(x).relu()
        s = infinite_selection(net.c(y + (net.a(y) + net.b(y)).relu()).relu())
    a, b, c = (layer.weight.detach().double().abs() for layer in (net.a, net.b, net.c))
    second = c.T @ s
    first = (a + b).T @ second
    torch.testing.assert_close(nisp_of(net, x)["stem"], (first / first.sum() + second / second.sum()) / 2)


def _linear_calls(weight: torch.Tensor):
    """A network whose last features have importance (1, 0), run once."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2, bias=False), nn.Linear(2, 3))
    with torch.no_grad():
        net[2].weight.copy_(weight)
    x = torch.randn(2, 2)
    tape = Tape(Seen(net, prunus.trace(net, x), [x], None))
    with torch.no_grad(), tape:
        net(x)
    return tape.calls, double(1, 0), net


class Everything(nn.Module):
    """A residual sum, a concatenation, pooling by average, a depthwise convolution, and norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.a, self.dw = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.b, self.fc1, self.fc2 = nn.Conv2d(4, 3, 1), nn.Linear(7 * 9, 6), nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn(self.stem(x)).relu()
        y = y + nn.functional.relu_(self.dw(self.a(y)))
        y = nn.functional.avg_pool2d(torch.cat([y, self.b(y)], 1), 2)
        return self.fc2(self.fc1(y.flatten(1)).sigmoid())


def test_importance_is_the_slope_of_the_network_of_absolute_weights():
    """A network that is linear once its activations are left out: against autograd of a copy of it."""
    torch.manual_seed(0)
    net = Everything().eval()
    net.bn.running_var.uniform_(0.5, 2)
    net.bn.weight.data.uniform_(-1, 1)
    x = torch.randn(16, 3, 6, 6)
    with torch.no_grad():
        y = net.bn(net.stem(x)).relu()
        y = y + net.dw(net.a(y)).relu()
        y = nn.functional.avg_pool2d(torch.cat([y, net.b(y)], 1), 2)
        s = infinite_selection(net.fc1(y.flatten(1)).sigmoid())
    found = nisp_of(net, x)
    copy = Everything().double().eval()
    copy.load_state_dict({k: v.abs() for k, v in net.state_dict().items()})
    held = {}

    def hold(name: str):
        def before(module: nn.Module, args: tuple[torch.Tensor]) -> torch.Tensor:  # by this layer alone
            return held.setdefault(name, args[0].clone())

        return before

    for name in ("a", "b", "fc1"):  # a depthwise layer reads nothing: it gives the units on
        getattr(copy, name).register_forward_pre_hook(hold(name))
    y = copy.bn(copy.stem(torch.ones(1, 3, 6, 6).double()))
    y = y + copy.dw(copy.a(y))
    y = nn.functional.avg_pool2d(torch.cat([y, copy.b(y)], 1), 2)
    out = copy.fc1(y.flatten(1))
    slopes = dict(zip(held, torch.autograd.grad((out * s).sum(), list(held.values()))))
    parts = slopes.pop("fc1").reshape(7, 9).sum(1)
    share = {n: g.transpose(0, 1).flatten(1).sum(1) for n, g in slopes.items()} | {"fc1": parts[:4]}
    stream = torch.stack([share[n] / share[n].sum() for n in ("a", "b", "fc1")]).mean(0)  # three places
    torch.testing.assert_close(found["stem"], stream, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found["b"], parts[4:] / parts[4:].sum(), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found["fc1"], s / s.sum(), rtol=1e-5, atol=1e-8)


def test_a_maximum_goes_to_where_it_was_taken_and_depth_does_not_overflow():
    net = nn.Sequential(nn.Conv1d(1, 2, 1), nn.MaxPool1d(3), nn.Flatten(), nn.Linear(2, 4), nn.Linear(4, 2))
    found = nisp_of(net, torch.randn(4, 1, 3))
    assert found["0"].sum().item() == pytest.approx(1)
    layers = [layer for _ in range(60) for layer in (nn.Linear(8, 8), nn.Sigmoid())]
    deep = nn.Sequential(*layers, nn.Linear(8, 2))
    with torch.no_grad():
        for p in deep.parameters():
            p.mul_(1e5)
    found = nisp_of(deep, torch.randn(4, 8))
    assert all(v.isfinite().all() and v.sum().item() == pytest.approx(1) for v in found.values())


def test_norms_of_a_sample_take_part_with_their_scale_and_attention_is_gone_through():
    torch.manual_seed(0)
    for norm, x in ((nn.GroupNorm(2, 6), torch.randn(5, 3, 4, 4)), (nn.LayerNorm(6), torch.randn(5, 4, 3))):
        layer = (lambda i, o: nn.Conv2d(i, o, 1)) if x.dim() == 4 else nn.Linear
        first, same, last = layer(3, 6), layer(6, 6), layer(6, 4)
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.0, 1, 1, 1, -2, 1]))
            same.weight.copy_(torch.eye(6).reshape(same.weight.shape))  # reads the units before the norm
            last.weight.fill_(1)
        flat = nn.Flatten()
        net = nn.Sequential(first, same, norm, last, flat, nn.Linear(64 if x.dim() == 4 else 16, 2))
        found = nisp_of(net, x)
        assert found["0"][0] == 0 and found["0"][4].item() == pytest.approx(2 * found["0"][5].item(), rel=1e-4)
        behind = found["1/group_width" if x.dim() == 4 else "1"]
        assert behind.tolist() == pytest.approx([1 / len(behind)] * len(behind))  # all are read alike
    net = attention()
    assert set(nisp_of(net, torch.randn(3, 4, 8))) == {"q", "v", "out"}


def test_nisp_ranks_a_network_of_the_zoo():
    model = prunus.zoo.resnet20()
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    groups = prunus.trace(model, x[:1])
    stats = collect(model, groups, [x], {"propagated"})
    plan = prunus.allocate(groups, score(groups, "nisp", stats), prunus.Budget(macs=0.5), allocator="uniform")
    assert prunus.shrink_(model, groups, plan).verified.max_relative_error < 1e-7
