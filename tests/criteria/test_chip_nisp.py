"""Independence of channels and propagated importance, against numbers worked out by hand."""

import pytest
import torch
from torch import nn

import prunus
from prunus.criteria import score
from prunus.observe import collect
from prunus.observe.independence import lost_nuclear_norm
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
