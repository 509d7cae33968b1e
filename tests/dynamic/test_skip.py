"""Skipping computes what masking computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus import zoo
from prunus.core import InputError
from prunus.dynamic import by_lists, dynamic_, dynamic_of, gates, skipping
from prunus.dynamic.buckets import buckets
from prunus.dynamic.skip import Skipping, report
from tests.dynamic.problem import Basic, Separable, example, settled


def gated(make: Any, method: str = "fbs", share: float = 0.5) -> nn.Module:
    """A network whose gates are half closed, by other channels for every input."""
    net = settled(make())
    dynamic_(net, example() if make in (Basic, Separable) else torch.randn(1, 3, 32, 32), method)
    torch.manual_seed(3)
    for gate in gates(net):
        for p in gate.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=1.0 if make in (Basic, Separable) else 0.3 / p.shape[1] ** 0.5)
        if method == "fbs":
            gate.count.fill_(max(int(share * gate.outputs), 1))
        elif method == "manidp":
            gate.threshold.fill_(1.0)
        else:
            nn.init.zeros_(gate.expand.bias)
    return net


def equal(a: Tensor, b: Tensor) -> None:
    assert float((a - b).abs().max()) <= 1e-5 * float(b.abs().max()), float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("fast", [skipping, by_lists])
@pytest.mark.parametrize("method", ["manidp", "fbs", "channel-gating"])
@pytest.mark.parametrize("make", [Basic, Separable])
def test_skipping_is_masking(make: Any, method: str, fast: Any) -> None:
    net, x = gated(make, method), example(7)
    quick = skipping(net, x, dense="never") if fast is skipping else by_lists(net, x)
    with torch.no_grad():
        for part in (x[:1], x[1:2], x, x[:1].repeat(3, 1, 1, 1)):
            equal(quick(part), net(part))


def test_skipping_in_16_bits() -> None:
    net, x = gated(Basic, "fbs").to(torch.bfloat16), example(3).to(torch.bfloat16)
    quick = skipping(net, x, dense="never")
    with torch.no_grad():
        for part in (x[:1], x):
            torch.testing.assert_close(quick(part), net(part), rtol=0.1, atol=0.1 * float(net(part).abs().max()))


@pytest.mark.parametrize("dense", ["always", "auto"])
def test_layers_above_their_break_even_are_computed_whole(dense: str) -> None:
    net, x = gated(Basic), example(3)
    quick = skipping(net, x, dense=dense)
    with torch.no_grad():
        equal(quick(x), net(x))
        equal(quick(x[:1]), net(x[:1]))
    if dense == "always":
        assert "0 of 4 gated layers skip" in report(quick)[0]
        assert "computed whole, since gathering gains nothing: a1, a2, b1, b2" in report(quick)[1]


def test_active_channels_alone_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes of the convolutions that run, and the maps between gated layers."""
    net, x = gated(Basic), example(1)
    quick, seen = skipping(net, x, dense="never"), []
    run = Skipping.run

    def watched(self: Any, x: Tensor, out: Any, into: Any) -> Tensor:
        y = run(self, x, out, into)
        seen.append((x.shape[1], y.shape[1]))
        return y

    monkeypatch.setattr(Skipping, "run", watched)
    with torch.no_grad():
        quick(x)
    assert seen == [(8, 4), (4, 4), (8, 8), (8, 8)]


@pytest.mark.parametrize("name", ["resnet20_b", "mobilenetv2", "densenet_bc40", "vgg11"])
def test_networks_of_the_zoo(name: str) -> None:
    net, x = gated(getattr(zoo, name)), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        quick = skipping(net, x, dense="never")
        for part in (x[:1], x):
            equal(quick(part), net(part))


def test_channels_that_are_off_are_never_read() -> None:
    """NaN in every weight of a channel that is off changes nothing."""
    net, x = gated(Basic), example(1)
    quick = skipping(net, x, dense="never")
    with torch.no_grad():
        expected = quick(x)
        layer = quick.a1
        off = torch.ones(8, dtype=torch.bool)
        off[layer.active] = False
        assert int(off.sum()) == 4
        layer.head.weight[off] = torch.nan
        quick.a2.head.weight[:, off] = torch.nan
        assert torch.equal(quick(x), expected)


def test_equal_masks_share_a_bucket_and_different_ones_do_not() -> None:
    on = torch.tensor([[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]] * 6).bool()
    found = buckets(on, None, 1.0)
    assert found is not None
    assert sorted(r.tolist() for r in found) == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    near = on.repeat_interleave(10, 1)
    near[0, 10] = True
    assert len(buckets(near, None, 1.0)) == 2  # type: ignore[arg-type]
    assert buckets(on, None, 0.05) is None


def test_inputs_that_differ_in_one_channel_share_a_bucket_only_where_that_is_cheaper() -> None:
    on = torch.tensor([[1, 0]] * 8 + [[1, 1]] * 8).bool()  # together 16, apart 8 / 2 + 8 + 2 * 0.5
    assert [len(r) for r in buckets(on, None, 1.0) or ()] == [8, 8]
    two = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 1, 0]]).bool()  # together 2 * 5 / 6, apart 2 * 4 / 6 + 1
    assert [r.tolist() for r in buckets(two, None, 1.0) or ()] == [[0, 1]]
    assert buckets(two, None, 0.83) is None and len(buckets(two, None, 0.84) or ()) == 1


def test_the_floor_holds_for_one_input() -> None:
    net, x = gated(Basic, "manidp"), example(2)
    for gate in gates(net):
        gate.threshold.fill_(1e6)  # no channel is on but for the floor
    quick = skipping(net, x, dense="never")
    with torch.no_grad():
        equal(quick(x[:1]), net(x[:1]))
    assert quick.a1.active.numel() == gates(net)[0].floor == 1


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2)])
def test_norms_behind_an_activation_are_scaled_and_maps_stay_compact_through_pools(pool: nn.Module) -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.one = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
            self.relu, self.norm, self.pool = nn.ReLU(), nn.BatchNorm2d(8), pool
            self.two, self.last = nn.Conv2d(8, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.two(self.pool(self.norm(self.relu(self.one(self.stem(x)))))).mean((2, 3)))

    net, x = gated(Late), example(3)
    place = dynamic_of(net).placement.places[0]  # type: ignore[union-attr]
    assert (place.layer, place.site, place.compact) == ("one", "norm", True)
    quick = skipping(net, x, dense="never")
    with torch.no_grad():
        for part in (x[:1], x):
            equal(quick(part), net(part))


def test_wrong_use_is_said() -> None:
    net, x = settled(Basic()), example(1)
    with pytest.raises(InputError, match="has no gates"):
        skipping(net, x)
    dynamic_(net, x)
    with pytest.raises(InputError, match="training mode"):
        skipping(net.train(), x)
    with pytest.raises(InputError, match="expected one of 'auto'"):
        skipping(net.eval(), x, dense="maybe")
