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
    back = [(layer.name, slope.tolist()) for layer, _, slope in _back(*calls)]
    assert back == [("2.weight", [[1, 0]] * 2), ("0.weight", [[1, 2]] * 2)]


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
    outs = {n: m for n, m in copy.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    held = {}
    for name, module in outs.items():
        module.register_forward_hook(lambda m, a, out, name=name: held.__setitem__(name, out))
    y = copy.bn(copy.stem(torch.ones(1, 3, 6, 6).double()))
    y = y + copy.dw(copy.a(y))
    y = nn.functional.avg_pool2d(torch.cat([y, copy.b(y)], 1), 2)
    slopes = torch.autograd.grad((copy.fc1(y.flatten(1)) * s).sum(), list(held.values()))
    share = {n: g.transpose(0, 1).flatten(1).sum(1) for n, g in zip(held, slopes)}
    share = {n: v / v.sum() for n, v in share.items()}
    torch.testing.assert_close(found["b"], share["b"], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found["fc1"], share["fc1"], rtol=1e-5, atol=1e-8)
    both = (share["stem"] + share["a"] + share["dw"]) / 3  # three layers make the units of the stream
    torch.testing.assert_close(found["stem"], both, rtol=1e-5, atol=1e-8)


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
        first = nn.Conv2d(3, 6, 1) if x.dim() == 4 else nn.Linear(3, 6)
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.0, 1, 1, 1, -2, 1]))
            first.weight[1:].copy_(first.weight[1].clone())
            first.bias.copy_(torch.arange(6.0))
        last = nn.Conv2d(6, 4, 1) if x.dim() == 4 else nn.Linear(6, 4)
        nn.init.ones_(last.weight)
        pool = nn.Flatten() if x.dim() == 4 else nn.Flatten(1)
        net = nn.Sequential(first, norm, last, pool, nn.Linear(64 if x.dim() == 4 else 16, 2))
        found = nisp_of(net, x)["0/group_width" if x.dim() == 4 else "0"]
        assert found[0] == 0 and found[4].item() == pytest.approx(2 * found[5].item(), rel=1e-4)
    net = attention()
    assert set(nisp_of(net, torch.randn(3, 4, 8))) == {"q", "v", "out"}


def test_nisp_ranks_a_network_of_the_zoo():
    model = prunus.zoo.resnet20()
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    groups = prunus.trace(model, x[:1])
    stats = collect(model, groups, [x], {"propagated"})
    plan = prunus.allocate(groups, score(groups, "nisp", stats), prunus.Budget(macs=0.5), allocator="uniform")
    assert prunus.shrink_(model, groups, plan).verified.max_relative_error < 1e-7
