"""What is only right after `begin` or `attach`: without, it is right all the same, or one error says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import prunus
from prunus.core import InputError
from prunus.core.errors import TrainingError
from prunus.dynamic import GateTraining, dynamic_, gates
from prunus.dynamic import methods as gate_methods
from prunus.masks import MaskPruner
from prunus.masks import methods as mask_methods
from prunus.regularizers import regularizers


def gated(name: str, **options: Any) -> tuple[nn.Module, GateTraining, tuple[torch.Tensor, torch.Tensor]]:
    """A network with gates of a method, its training of four steps in two periods, and a batch of it."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    x, y = torch.randn(6, 3, 7, 7), torch.arange(6) % 4
    dynamic_(net, x, name, keep=0.5, **options)
    return net, GateTraining(net, steps=4, periods=2), (x, y)


def loss_of(net: nn.Module, training: GateTraining, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    torch.manual_seed(1)  # gates that draw
    with training.watching():
        z = net(batch[0])
    return training.loss(z, batch[1])


@pytest.mark.parametrize("name", [entry.name for entry in gate_methods])
def test_a_loss_without_begin_is_that_with_begin_or_an_error_that_names_it(name: str) -> None:
    net, training, batch = gated(name)
    begun = gated(name)
    begun[1].begin([batch])
    right = loss_of(*begun)
    assert bool(right.isfinite())
    try:
        assert torch.equal(loss_of(net, training, batch), right)
    except InputError as error:
        assert "training.begin(batches)" in str(error)
        assert not training._sums.any()  # a loss that is none is not counted
        training.begin([batch])
        assert torch.equal(loss_of(net, training, batch), right)


@pytest.mark.parametrize("name", [entry.name for entry in gate_methods])
def test_gates_do_not_close_by_losses_that_nobody_took_or_that_are_not_finite(name: str) -> None:
    net, training, (x, y) = gated(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    training.step()
    with pytest.raises(InputError, match=r"training\.loss\(z, y\)"):
        training.step()
    training = GateTraining(net, steps=1, periods=1)
    training.begin([(x, y)])
    loss_of(net, training, (x.new_full(x.shape, torch.nan), y))
    with pytest.raises(TrainingError, match="not finite"):
        training.step()
    with pytest.raises(TrainingError, match="not finite"):
        training.begin([(x.new_full(x.shape, torch.nan), y)])
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_manidp_without_complexity_compares_with_nothing() -> None:
    net, training, batch = gated("manidp", complexity=0.0)
    assert bool(loss_of(net, training, batch).isfinite())
    state = training.state_dict()
    assert state["usual"] is None
    training.load_state_dict(state)
    assert training.usual is None
    training.step(), training.step()
    usual = float(nn.functional.cross_entropy(gated("manidp")[0](batch[0]), batch[1]))
    assert training.usual == pytest.approx(usual, rel=1e-6)
    assert all(bool(g.threshold > -1e4) for g in gates(net))  # type: ignore[operator]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4))


def masked(name: str) -> tuple[nn.Module, MaskPruner]:
    net = network()
    return net, MaskPruner(net, prunus.tensors(net), name, density=0.5, steps=40)


@pytest.mark.parametrize("name", [entry.name for entry in mask_methods])
def test_masks_that_were_never_put_on_have_neither_a_state_nor_an_end(name: str) -> None:
    net, pruner = masked(name)
    before = [p.detach().clone() for p in net.parameters()]
    calls: list[Callable[[], Any]] = [pruner.state_dict, pruner.finish_]
    for call in calls:
        with pytest.raises(InputError, match=r"attach\(optimizer\)"):
            call()
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before))
    twin, other = masked(name)
    other.attach(torch.optim.SGD(twin.parameters(), lr=0.1))
    pruner.load_state_dict(other.state_dict())
    assert pruner.finish_().density <= 0.5


@pytest.mark.parametrize("name", [entry.name for entry in regularizers])
def test_the_state_of_a_pruner_before_it_is_attached_begins_anew(name: str) -> None:
    ends = []
    for restored in (False, True):
        net, budget = network(), prunus.Budget(params=0.5)
        pruner, other = (prunus.Pruner(net, torch.zeros(2, 6), budget=budget, regularizer=name) for _ in range(2))
        with pytest.raises(InputError, match=r"attach\(optimizer\)"):
            other.finish_()
        if restored:
            pruner.load_state_dict(other.state_dict())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        pruner.attach(optimizer)
        net(torch.ones(2, 6)).square().sum().backward()
        optimizer.step()
        ends.append([p.detach().clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends))
