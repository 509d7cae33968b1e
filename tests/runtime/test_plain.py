"""Networks on a processor without vectors, and where a network spends its time."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")

from prunus import zoo
from prunus.core.errors import FileError, InputError
from prunus.runtime import compile, jit, load, profile, save
from prunus.runtime.activations import FUNCTIONS
from prunus.runtime.build import Builder
from prunus.runtime.plain import FUNCTIONS as PLAIN
from prunus.runtime.plain import KINDS, PlainNetwork
from prunus.runtime.profile import by_torch
from prunus.runtime.rules import RULES


class Everything(nn.Module):
    """Every kind of node, and an operator that only torch has."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.last = nn.Linear(16, 5)

    def forward(self, x):
        y = F.relu6(self.norm(self.a(x)))
        y = F.max_pool2d(y, 3, 2, 1) + F.avg_pool2d(y, 2)
        y = F.pad(self.b(y) + y, (1, 0, 0, 1))[:, :, :-1, 1:]
        y = F.silu(y) * torch.sigmoid(F.adaptive_avg_pool2d(y, 1))
        y = torch.cat([y, torch.erf(y)], 1).clamp(-0.5, 0.5)
        return self.last(F.adaptive_avg_pool2d(y, 1).flatten(1))


def model() -> nn.Module:
    torch.manual_seed(0)
    return Everything().eval()


@pytest.fixture
def no_vectors(monkeypatch) -> None:
    def machine():
        jit.lanes_of({}, "x86_64")

    monkeypatch.setattr(jit, "machine", machine)


def test_a_processor_without_vectors_is_said_and_torch_runs_the_network(no_vectors, tmp_path) -> None:
    for net, size in ((model(), 8), (zoo.resnet20().eval(), 32)):
        x = torch.randn(3, 3, size, size)
        with pytest.warns(UserWarning, match=r"none of them\. Torch runs this one, and zeros save no time"):
            plain = compile(net, x[:2])
        assert isinstance(plain, PlainNetwork) and set(plain.report()) == {"torch"}
        torch.testing.assert_close(plain(x), net(x).detach(), rtol=1e-5, atol=1e-5)
        assert sum(s.share for s in profile(plain, 1)) == pytest.approx(1)
        with pytest.raises(InputError, match="was compiled for inputs"):
            plain(x[:, :2])
    save(plain, tmp_path / "net")
    with pytest.warns(UserWarning, match="zeros save no time"):
        assert torch.equal(load(tmp_path / "net")(x), plain(x))


def test_a_file_goes_from_a_processor_with_vectors_to_one_without_and_back(tmp_path, monkeypatch) -> None:
    net, x = model(), torch.randn(2, 3, 8, 8)
    save(compile(net, x), tmp_path / "net")
    with monkeypatch.context() as patch:
        patch.setattr(jit, "machine", lambda: jit.lanes_of({}, "x86_64"))
        with pytest.warns(UserWarning):
            plain = load(tmp_path / "net")
    torch.testing.assert_close(plain(x), net(x).detach(), rtol=1e-5, atol=1e-5)
    save(plain, tmp_path / "again")
    torch.testing.assert_close(load(tmp_path / "again")(x), net(x).detach(), rtol=1e-5, atol=1e-5)


def test_a_file_for_wider_vectors_is_refused_where_its_batch_does_not_fit(tmp_path, monkeypatch) -> None:
    lanes = jit.machine().lanes
    save(compile(model(), torch.randn(lanes, 3, 8, 8)), tmp_path / "net")
    monkeypatch.setattr(jit, "lanes", lambda: lanes // 2)
    with pytest.raises(FileError, match=f"compiled for {lanes} samples at a time"):
        load(tmp_path / "net")


def test_every_kind_of_node_can_be_run_by_torch() -> None:
    assert set(PLAIN) == set(FUNCTIONS)
    kinds = {name.removeprefix("do_") for name in dir(Builder) if name.startswith("do_")}
    assert kinds == {*KINDS, "input", "constant", "torch"} == set(RULES)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_time_of_every_step_adds_up_and_torch_is_named(threads: int) -> None:
    compiled = compile(model(), torch.randn(1, 3, 8, 8), threads=threads)
    shares = profile(compiled, 2)
    assert [s.kind for s in shares] == [s.kind for s in compiled.steps]
    assert sum(s.share for s in shares) == pytest.approx(1) and min(s.share for s in shares) > 0
    assert by_torch(compiled).startswith("Without a kernel, and so run by torch: erf; ")
    assert by_torch(compile(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 9, 9))) == ""
