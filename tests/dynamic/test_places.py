"""Gates by the trace: where, with what names, and where not; open they change nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus import zoo
from prunus.core import FileError, InputError, NothingToPruneError
from prunus.dynamic import dynamic_, dynamic_of, gates, opened, realised, static_, warm_start_, watched
from prunus.dynamic.places import Work
from tests.dynamic.problem import Basic, Separable, example, settled


def names(net: nn.Module, x: Tensor) -> dict[str, str]:
    return {p.layer: p.site for p in dynamic_(net, x).placement.places}


def test_basic_blocks() -> None:
    found = dynamic_(Basic(), example()).placement
    assert [(p.layer, p.site, p.relu) for p in found.places] == [
        ("a1", "n1", True), ("a2", "n2", False), ("b1", "m1", True), ("b2", "m2", False),
    ]  # fmt: skip
    assert dict(found.refused) == {
        "stem": "it is the stem: it reads the network's input",
        "short": "it is the shortcut of a residual block",
    }
    assert "a1: 8 channels, masked behind n1 and its rectifier" in str(found)


def test_depthwise_convolutions_activations_and_pools() -> None:
    assert names(Separable(), example()) == {
        "expand.0": "depth.2", "project.0": "project.1", "more.0": "more.1", "last": "last",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "gated"),
    [("resnet20_b", 18), ("vgg11", 7), ("mobilenetv2", 34), ("densenet_bc40", 38)],
)
def test_networks_of_the_zoo(name: str, gated: int) -> None:
    net, x = settled(getattr(zoo, name)()), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = net(x)
        assert len(dynamic_(net, x).placement.places) == gated
        with opened(net):
            assert torch.equal(net(x), before)
        assert not torch.equal(net(x), before)
        static_(net)
        assert torch.equal(net(x), before)
    assert not [k for k in net.state_dict() if "gate" in k]
    assert dynamic_of(net) is None


@pytest.mark.parametrize("method", ["manidp", "fbs", "channel-gating"])
@pytest.mark.parametrize("make", [Basic, Separable])
def test_open_gates_are_the_backbone_to_the_bit(make: Any, method: str) -> None:
    net, x = settled(make()), example()
    before = net(x)
    dynamic_(net, x, method)
    with opened(net):
        assert torch.equal(net(x), before)
        assert realised(net, [x]).kept.tolist() == [[g.outputs for g in gates(net)]] * len(x)
    net.train()
    with opened(net):
        net(x).sum().backward()  # gradients, too
    mine = {n: p.grad for n, p in net.named_parameters() if "gate" not in n}
    plain = settled(make()).train()
    plain(x).sum().backward()
    assert all(torch.equal(p.grad, mine[n]) for n, p in plain.named_parameters())  # type: ignore[arg-type]


def test_masks_are_applied_behind_norm_and_rectifier() -> None:
    """By hand: the first block of the network, with the masks that the gates say."""
    net, x = settled(Basic()).double(), example().double()
    dynamic_(net, x, "fbs")
    first, second, *_ = gates(net)
    first.count.fill_(3)
    second.count.fill_(5)
    relu = torch.relu
    with torch.no_grad():
        came = relu(net.norm(nn.Conv2d.forward(net.stem, x)))
        one = first.mask_of(first.estimate(came))[0][..., None, None]
        y = relu(net.n1.__class__.forward(net.n1, nn.Conv2d.forward(net.a1, came))) * one
        two = second.mask_of(second.estimate(y))[0][..., None, None]
        expected = relu(came + net.n2.__class__.forward(net.n2, nn.Conv2d.forward(net.a2, y)) * two)
        seen = []
        net.b1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        net(x)
    torch.testing.assert_close(seen[0], expected, rtol=1e-12, atol=1e-12)


def test_copies_have_gates_of_their_own() -> None:
    net, x = settled(Basic()), example()
    dynamic_(net, x, init="ones")
    other = copy.deepcopy(net)
    for gate in gates(other):
        gate.threshold.fill_(2.0)
    assert torch.equal(net(x), settled(Basic())(x))
    assert not torch.equal(other(x), net(x))


def test_files_hold_gates_also_of_a_cut_network(tmp_path: Path) -> None:
    net, x = settled(Basic()), example()
    prunus.prune_(net, x, budget=prunus.Budget(macs=0.6))
    dynamic_(net, x, "fbs", keep=0.5)
    gates(net)[0].count.fill_(2)
    prunus.save(net, tmp_path / "net.safetensors")
    other = prunus.load(tmp_path / "net.safetensors", Basic).eval()
    assert torch.equal(other(x), net(x))
    assert dynamic_of(other) == dynamic_of(net)
    assert int(gates(other)[0].count) == 2

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

    with pytest.raises(FileError, match="another architecture"):
        prunus.load(tmp_path / "net.safetensors", Other)


def test_floors_hold_and_are_said() -> None:
    net, x = settled(Basic()), example()
    dynamic_(net, x, init="ones", floor=2)
    for gate in gates(net):
        gate.threshold.fill_(5.0)  # no saliency reaches it
    said = realised(net, [x])
    assert said.kept.unique().tolist() == [2]
    assert set(said.floored.values()) == {1.0}
    assert "the floor held a channel on in a1 (100.0% of inputs)" in str(said)


def test_what_cannot_be_gated_is_refused() -> None:
    with pytest.raises(NothingToPruneError, match="no layer that can be gated .*it has no convolutions"):
        dynamic_(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(1, 4))
    with pytest.raises(NothingToPruneError, match="it is the stem"):
        dynamic_(nn.Conv2d(3, 4, 3), example())
    fully = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    with pytest.raises(NothingToPruneError, match="its channels are the network's output"):
        dynamic_(fully, example())
    shared = nn.Conv2d(4, 4, 3, 1, 1)
    twice = nn.Sequential(nn.Conv2d(3, 4, 3), shared, nn.ReLU(), shared, nn.Flatten(), nn.Linear(144, 2))
    with pytest.raises(NothingToPruneError, match="several times"):
        dynamic_(twice, example())


def test_wrong_use_is_said() -> None:
    net, x = settled(Basic()), example()
    with pytest.raises(InputError, match="has no gates"):
        realised(net, [x])
    with pytest.raises(InputError, match=r"'manidp' has no 'kep'. Did you mean 'keep'"):
        dynamic_(net, x, kep=0.5)
    odd = [{"until": "x"}, {"keep": None}, {"similarity": None}, {"power": [1]}, {"init": 3}, {"floor": True}]
    for wrong in ({"keep": 0.0}, {"keep": 1.5}, {"floor": 0}, {"until": 0}, {"init": "zeros"}, {"share": 0}, *odd):
        with pytest.raises(InputError, match="expected"):
            dynamic_(net, x, **wrong)
    dynamic_(net, x)
    with pytest.raises(InputError, match="has gates already"):
        dynamic_(net, x)
    with pytest.raises(InputError, match="no batch"):
        realised(net, [])
    with pytest.raises(InputError, match=r"training mode.*model.eval\(\)"):
        realised(net.train(), [x])


def strengths(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Root mean squares of what every site gives, behind its activation."""
    found: list[Tensor] = []
    for place in dynamic_of(net).placement.places:  # type: ignore[union-attr]
        taken: list[Tensor] = []
        hook = net.get_submodule(place.site).register_forward_hook(lambda _, __, y, taken=taken: taken.append(y))
        with opened(net):
            net(x)
        hook.remove()
        found.append((taken[0].relu() if place.relu else taken[0]).square().mean((0, 2, 3)).sqrt())
    return found


@pytest.mark.parametrize("method", ["manidp", "fbs"])
@pytest.mark.parametrize("make", [Basic, Separable])
def test_a_warm_start_changes_nothing_but_says_which_channels_matter(make: Any, method: str) -> None:
    net, x = settled(make()).double(), example(16).double()
    before = net(x)
    dynamic_(net, x, method)
    maps = strengths(net, x)
    at_one = warm_start_(net, [x])
    assert at_one == ([] if make is Basic else ["expand.0", "more.0"])  # behind ReLU6 and SiLU a factor is no factor
    torch.testing.assert_close(net(x), before, rtol=1e-9, atol=1e-9)
    with watched(net) as tapes:
        net(x)
    for place, tape, rms in zip(dynamic_of(net).placement.places, tapes, maps):  # type: ignore[union-attr]
        expected = torch.ones_like(rms) if place.layer in at_one else (rms / rms.mean()).clamp(min=0.05)
        torch.testing.assert_close(tape[0].saliency, expected.expand(16, -1), rtol=1e-9, atol=1e-9)


def test_a_warm_start_takes_batches_with_labels_and_layers_without_gates_are_of_none() -> None:
    found = []
    for batches in ([example(8)], [(example(8), torch.zeros(8))], [[example(8), torch.zeros(8)]]):
        net = settled(Basic())
        placed = dynamic_(net, example(), "fbs").placement
        warm_start_(net, batches)
        found.append(torch.cat([p.flatten() for gate in gates(net) for p in gate.parameters()]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert (Work("stem", 1).out, Work("stem", 1).into) == (-1, -1)
    assert any((work.out, work.into) == (-1, -1) for work in placed.work)


def test_a_warm_start_needs_factors_and_data() -> None:
    net, x = settled(Basic()), example()
    dynamic_(net, x, "channel-gating")
    with pytest.raises(InputError, match="begins all open"):
        warm_start_(net, [x])
    static_(net)
    dynamic_(net, x, "fbs")
    with pytest.raises(InputError, match="no batch"):
        warm_start_(net, [])


def test_a_network_with_gates_is_not_cut() -> None:
    net, x = settled(Basic()), example()
    groups = prunus.trace(net, x)
    plan = prunus.allocate(groups, prunus.score(groups, "l2"), prunus.Budget(macs=0.5))
    dynamic_(net, x, "fbs")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for cut in (
        lambda: prunus.prune_(net, x, budget=prunus.Budget(macs=0.5)),
        lambda: prunus.Pruner(net, x, budget=prunus.Budget(macs=0.5)),
        lambda: prunus.shrink_(net, groups, plan),
    ):
        with pytest.raises(InputError, match=r"Basic is dynamic: its gates .* Cut first"):
            cut()
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
