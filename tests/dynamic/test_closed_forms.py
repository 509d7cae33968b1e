"""The equations of the methods, each computed another way."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import prunus
from prunus.dynamic import GateTraining, Seen, dynamic_, gates, methods, watched
from prunus.dynamic.channel_gating import BinaryGate
from prunus.dynamic.fbs import FBS, FBSGate, density
from prunus.dynamic.manidp import ManiDP, ManiGate, complexity, ease, keep_rate, similarity
from tests.dynamic.problem import Basic, example, settled


def seen_of(saliency: torch.Tensor) -> Seen:
    return Seen(saliency, saliency, saliency, torch.zeros(len(saliency), dtype=torch.bool))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_easy_samples_pay_and_hard_ones_do_not(power: float) -> None:
    w = ease(torch.tensor([0.0, 0.5, 1.0, 7.0]), usual=2.0, share=0.5, power=power)
    assert w.tolist() == [1.0, 0.5**power, 0.0, 0.0]


def test_complexity_is_the_weighted_mean_of_saliencies() -> None:
    torch.manual_seed(0)
    ce, pi = torch.rand(5).double(), [torch.rand(5, c).double() for c in (3, 4)]
    expected = 0.0
    for i in range(5):
        w = max(0.0, (0.6 - float(ce[i])) / 0.6) if ce[i] < 0.6 else 0.0
        expected += w * sum(float(p[i].mean()) for p in pi) / 5
    assert float(complexity(ce, pi, usual=1.2)) == pytest.approx(expected, rel=1e-12)


def test_the_weights_are_constants() -> None:
    """Else the loss would reward a larger cross-entropy."""
    ce = torch.tensor([0.1, 0.2], requires_grad=True)
    pi = torch.ones(2, 3, requires_grad=True)
    complexity(ce, [pi], usual=1.0).backward()
    assert ce.grad is None or not ce.grad.any()
    assert pi.grad is not None
    assert bool((pi.grad > 0).all())


def test_similarity_vanishes_for_multiples_of_the_features() -> None:
    torch.manual_seed(0)
    features = torch.rand(6, 5).double()
    scale = torch.rand(6, 1).double() + 0.5
    assert float(similarity([scale * features], [features])) == pytest.approx(0, abs=1e-14)


def test_similarity_is_the_distance_of_the_cosines() -> None:
    torch.manual_seed(1)
    pi, features = torch.rand(4, 3).double(), torch.randn(4, 7).double()
    cos = nn.functional.cosine_similarity
    expected = sum(
        float(cos(pi[i], pi[j], 0) - cos(features[i], features[j], 0)) ** 2 / 16 for i in range(4) for j in range(4)
    )
    assert float(similarity([pi, pi], [features, features])) == pytest.approx(2 * expected, rel=1e-12)


def test_both_sides_of_the_similarity_learn() -> None:
    pi, features = torch.rand(4, 3, requires_grad=True), torch.rand(4, 3, requires_grad=True)
    similarity([pi], [features]).backward()
    assert bool(pi.grad.abs().sum() > 0)  # type: ignore[union-attr]
    assert bool(features.grad.abs().sum() > 0)  # type: ignore[union-attr]


def test_the_keep_rate_falls_from_one_to_its_end() -> None:
    rates = [keep_rate(0.6, (e + 1) / 10) for e in range(10)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.6, abs=1e-15)
    assert keep_rate(0.6, 0.3) == pytest.approx(0.2 * math.cos(0.3 * math.pi) + 0.8)


def test_the_threshold_is_the_kth_largest_mean() -> None:
    gate = ManiGate(3, 4)
    mean = torch.tensor([0.1, 0.2, 0.3, 0.4])
    ManiDP(keep=0.5).close_([gate], [mean], progress=1.0)
    assert float(gate.threshold) == pytest.approx(0.3)
    mask, _ = gate.mask_of(mean[None])
    assert mask[0].tolist() == pytest.approx([0, 0, 0.3, 0.4])


def test_the_saliencies_of_manidp() -> None:
    torch.manual_seed(0)
    gate, x = ManiGate(3, 90).double(), torch.randn(2, 3, 4, 4).double()
    assert gate.reduce.weight.shape == (45, 3)  # half as many hidden channels in wide layers
    assert ManiGate(3, 79).reduce.weight.shape == (79, 3)
    v = x.mean((2, 3))
    hidden = (v @ gate.reduce.weight.T).clamp(min=0)
    expected = (hidden @ gate.expand.weight.T + 1).clamp(0, 1000)
    torch.testing.assert_close(gate.estimate(x), expected)
    with torch.no_grad():
        gate.expand.weight.mul_(1e6)
    assert float(gate.estimate(x).detach().max()) == 1000
    assert gate.macs == 3 * 45 + 45 * 90


def test_fbs_keeps_the_k_largest_and_boosts_them() -> None:
    torch.manual_seed(0)
    gate, x = FBSGate(3, 6).double(), torch.randn(4, 3, 5, 5).double()
    g = (x.abs().mean((2, 3)) @ gate.predict.weight.T + 1).clamp(min=0)
    torch.testing.assert_close(gate.estimate(x), g)
    gate.count.fill_(2)
    mask, _ = gate.mask_of(g)
    for row, kept in zip(g, mask):
        best = sorted(row.tolist())[-2:]
        assert sorted(v for v in kept.tolist() if v) == pytest.approx(best)
    loss = FBS(sparsity=0.1).loss(torch.zeros(4).double(), [seen_of(g), seen_of(g)], 1.0)
    assert float(loss.detach()) == pytest.approx(0.2 * float(g.detach().sum()) / 4)


def test_the_density_of_fbs_falls_by_a_tenth_a_stage() -> None:
    assert [round(density(0.5, (e + 0.5) / 6), 2) for e in range(6)] == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]
    gate = FBSGate(3, 7)
    FBS(keep=0.5).close_([gate], [torch.ones(7)], progress=1.0)
    assert int(gate.count) == 4  # ceil(0.5 * 7)


def test_binary_gates_go_straight_through() -> None:
    torch.manual_seed(0)
    gate = BinaryGate(3, 500)
    odds = torch.full((40, 500), 0.8, requires_grad=True)
    mask = gate.train().choose(odds)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert float(mask.detach().mean()) == pytest.approx(
        1 / (1 + math.exp(-0.8)), abs=0.01
    )  # logistic noise: its sigmoid
    mask.sum().backward()
    assert bool((odds.grad > 0).all())  # type: ignore[union-attr]
    assert gate.eval().choose(odds.detach()).unique().tolist() == [1.0]


@pytest.mark.parametrize("method", [entry.name for entry in methods])
def test_thresholds_and_rates_of_every_method_reach_their_end(method: str) -> None:
    """The way through training: the counts after it are those of the method's own rule on its own means."""
    torch.manual_seed(0)
    net, x, y = settled(Basic()).train(), example(8), torch.arange(8) % 4
    dynamic_(net, x, method, keep=0.5, **({"init": "ones"} if method != "channel-gating" else {}))
    training = GateTraining(net, steps=4, periods=2)
    training.begin([(x, y)])
    assert training.usual > 0
    for _ in range(3):
        with training.watching():
            z = net(x)
        training.loss(z, y).backward()
        training.step()
    with training.watching(), watched(net) as tapes:
        z = net(x)
    training._tapes = tapes
    training.loss(z, y)
    sums = training._sums.clone()
    training.step()
    assert float(sums[0]) == 16
    if method == "manidp":
        means = (sums[2:] / 16).float().split([g.outputs for g in gates(net)])
        for gate, mean in zip(gates(net), means):
            assert float(gate.threshold) == float(mean.sort(descending=True).values[math.ceil(gate.outputs / 2) - 1])
    if method == "fbs":
        assert [int(g.count) for g in gates(net)] == [math.ceil(g.outputs / 2) for g in gates(net)]


def test_gates_are_a_group_of_their_own_without_decay() -> None:
    from prunus.train.optimizers import build_optimizer

    net = Basic()
    dynamic_(net, example())
    for decay in ("all", "weights"):
        optimizer = build_optimizer(net, "sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, decay=decay)
        own = {id(p) for g in gates(net) for p in g.parameters()}
        of = [g for g in optimizer.param_groups if {id(p) for p in g["params"]} & own]
        assert len(of) == 1
        assert {id(p) for p in of[0]["params"]} == own
        assert of[0]["weight_decay"] == 0


def test_a_coupled_group_is_masked_as_a_whole() -> None:
    """What a gate behind a depthwise convolution turns off: the layer's rows, the depthwise ones, the next columns."""
    from tests.dynamic.problem import Separable

    net, x = settled(Separable()).double(), example(3).double()
    found = dynamic_(net, x, "fbs")
    place = next(p for p in found.placement.places if p.layer == "expand.0")
    assert (place.depthwise, place.site) == (("depth.0",), "depth.2")
    gate = gates(net)[found.placement.places.index(place)]
    gate.count.fill_(5)
    with torch.no_grad(), watched(net) as tapes:
        out = net(x)
    seen = tapes[found.placement.places.index(place)][0]
    for i in range(len(x)):
        on = seen.active[i]
        assert int(on.sum()) == 5
        silent = settled(Separable()).double()
        dynamic_(silent, x, "fbs")
        silent.load_state_dict(net.state_dict())
        with torch.no_grad():
            silent.expand[0].weight[~on] = 7.0  # never computed with
            silent.depth[0].weight[~on] = 7.0
            silent.project[0].weight[:, ~on] = 7.0
            torch.testing.assert_close(silent(x[i : i + 1]), out[i : i + 1], rtol=1e-12, atol=1e-12)


def test_costs_are_products_of_what_is_on() -> None:
    net, x = settled(Basic()), example(4)
    found = dynamic_(net, x, "fbs")
    for gate, k in zip(gates(net), (3, 5, 4, 9)):
        gate.count.fill_(k)
    with torch.no_grad():
        for gate in gates(net):
            gate.predict.weight.zero_()
    said = prunus.dynamic.realised(net, [x])
    kept = 64 * 9 * (8 * 3 + 3 * 5) + 16 * 9 * (8 * 4 + 4 * 9)  # a2 reads a1's map, b1 a sum, b2 b1's map
    rest = 64 * 9 * 3 * 8 + 16 * 8 * 16 + 16 * 4
    own = 8 * 8 + 8 * 8 + 8 * 16 + 16 * 16
    assert said.macs.tolist() == [kept + rest + own] * 4
    assert said.dense == 64 * 9 * (3 * 8 + 8 * 8 + 8 * 8) + 16 * 9 * (8 * 16 + 16 * 16) + 16 * 8 * 16 + 16 * 4
    assert [p.compact for p in found.placement.places] == [True, False, True, False]
