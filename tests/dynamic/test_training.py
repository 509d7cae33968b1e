"""Gates in training: two processes, a run that is broken off, and what the loop does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunus.core import FileError, InputError
from prunus.dynamic import GateTraining, dynamic_, gates, realised, watched
from prunus.dynamic.gate import mean, times
from prunus.train import fit
from prunus.train.keeper import Keeper
from tests.dynamic.problem import Basic, example, problem, settled

HERE = Path(__file__).parent


def network(method: str = "manidp", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    net = Basic()
    dynamic_(net, example(), method, **({"keep": 0.5} | options))
    return net


def train(net: nn.Module, **more: Any) -> Any:
    settings = {"preprocess": None, "epochs": 2, "lr": 0.02, "batch": 16, "precision": "32", "quiet": True}
    return fit(net, problem(), **settings | {"periods": 3} | more)


def test_thresholds_are_identical_on_two_ranks(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(HERE / "two_ranks.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    a, b = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert a["thresholds"] == b["thresholds"]
    assert all(t > 0 for t in a["thresholds"])
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])


def test_the_sums_are_those_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two halves, added as a process group would: the thresholds of the whole."""
    net, x, y = network(init="ones").eval(), example(8), torch.arange(8) % 4
    whole = GateTraining(net, steps=1, periods=1)
    halves = [GateTraining(net, steps=1, periods=1) for _ in range(2)]
    parts = (slice(0, 3), slice(3, 8))
    for training, part in ((whole, slice(0, 8)), *zip(halves, parts)):
        training.begin([(x, y)])
        with training.watching():
            z = net(x[part])
        training.loss(z, y[part])
    torch.testing.assert_close(halves[0]._sums + halves[1]._sums, whole._sums, rtol=1e-6, atol=1e-6)
    whole.step()
    expected = [float(g.threshold) for g in gates(net)]
    other = halves[1]._sums
    monkeypatch.setattr("prunus.dynamic.training.added", lambda values, device: values + other)
    halves[0].step()
    assert [float(g.threshold) for g in gates(net)] == pytest.approx(expected, rel=1e-6)
    assert halves[0].usual == pytest.approx(whole.usual, rel=1e-6)


class Killed(Exception):
    """Instead of a signal."""


@pytest.mark.parametrize("method", ["manidp", "fbs", "channel-gating"])
def test_resumed_training_ends_with_the_same_bits(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keeper, "due", lambda self: True)
    unbroken = network(method)
    train(unbroken, folder=tmp_path / "a", every=1e-9)
    write, seen = Keeper.write, []

    def written(self: Any, state: Any, rows: Any, final: bool) -> None:
        write(self, state, rows, final)
        seen.append(state["position"])
        if len(seen) == 9:  # in the second epoch, inside a period
            raise Killed

    monkeypatch.setattr(Keeper, "write", written)
    with pytest.raises(Killed):
        train(network(method), folder=tmp_path / "b", every=1e-9)
    monkeypatch.setattr(Keeper, "write", write)
    assert seen[-1]["batch"]
    resumed = network(method)
    train(resumed, folder=tmp_path / "b", resume=True, every=1e-9)
    for (name, a), b in zip(unbroken.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("method", ["manidp", "fbs", "channel-gating"])
def test_training_closes_gates_and_learns(method: str) -> None:
    options = {"bias": 0.3, "keep": 0.2} if method == "channel-gating" else {"init": "ones"}
    net = network(method, until=0.5, **options)
    history = train(net, epochs=6, periods=12, lr=0.05)
    said = realised(net.eval(), [problem().decide.x])
    assert said.mean < 0.85 * said.dense
    assert list(history)[-1].accuracy > 0.4  # of four classes


def test_easy_inputs_get_less_when_complexity_costs() -> None:
    """The complexity term alone makes saliencies small, through samples of small loss only."""
    net, x, y = network(init="ones", complexity=1.0, similarity=0.0), example(8), torch.arange(8) % 4
    training = GateTraining(net, steps=1, periods=1)
    training.usual = 1e-9  # no sample is easy
    with training.watching():
        z = net(x)
    training.loss(z, y).backward()
    plain = [p.grad.clone() for g in gates(net) for p in g.parameters() if p.grad is not None]
    net.zero_grad()
    training = GateTraining(net, steps=1, periods=1)
    training.usual = 1e9
    with training.watching():
        z = net(x)
    training.loss(z, y).backward()
    pressed = [p.grad for g in gates(net) for p in g.parameters() if p.grad is not None]
    assert any(not torch.equal(a, b) for a, b in zip(plain, pressed))
    bias = gates(net)[-1].expand.bias  # saliencies of one: d(complexity)/d(bias) is 1/C of about one a channel
    assert float(bias.grad.sum() - plain[-1].sum()) == pytest.approx(1, abs=1e-3)


def test_wrong_use_is_said() -> None:
    net, x, y = network(), example(4), torch.arange(4)
    with pytest.raises(InputError, match="has no gates"):
        GateTraining(Basic(), steps=1, periods=1)
    with pytest.raises(InputError, match="periods=3"):
        GateTraining(net, steps=2, periods=3)
    training = GateTraining(net, steps=2, periods=1)
    with pytest.raises(InputError, match="training.watching"):
        training.loss(net(x), y)
    with pytest.raises(InputError, match="no batch"):
        training.begin([])
    other = Basic(4)
    dynamic_(other, x)
    with pytest.raises(FileError, match="these have"):
        training.load_state_dict(GateTraining(other, steps=2, periods=1).state_dict())
    with pytest.raises(InputError, match="without distill"):
        train(network(), teacher=Basic(), distill={"weight": 0.5})


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_means_and_masks_have_the_gradients_they_should(format: Any) -> None:
    y = torch.randn(2, 3, 4, 5, dtype=torch.float64).contiguous(memory_format=format).requires_grad_()
    mask = torch.rand(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y, mask: (mean(y), times(y, mask)), (y, mask))
    slope = torch.autograd.grad(mean(y).sum(), y)[0]
    assert slope.is_contiguous(memory_format=format)
    with torch.no_grad():
        torch.testing.assert_close(mean(y), y.mean((2, 3)), rtol=0, atol=0)


@pytest.mark.parametrize("method", ["manidp", "fbs", "channel-gating"])
def test_saliencies_are_of_32_bits_where_the_network_is_of_16(method: str) -> None:
    net, x = settled(Basic()).train(), example(4)
    dynamic_(net, x, method)
    with torch.autocast("cpu", dtype=torch.bfloat16), watched(net) as tapes:
        z = net(x)
    assert all(tape[0].saliency.dtype == tape[0].features.dtype == torch.float32 for tape in tapes)
    z.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for gate in gates(net) for p in gate.parameters())
    assert net.to(torch.bfloat16)(x.to(torch.bfloat16)).dtype == torch.bfloat16
