"""Files of prunus's own engine: written, read again, refused; from a model, a file of `prunus.save`, a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")

import prunus
from prunus.bases import interspace_
from prunus.cli import main
from prunus.core import FileError, InputError, Inputs, VerificationError
from prunus.export import exporters, to_sparse
from prunus.runtime import load
from prunus.zoo import digits_net


def code(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return int(end.value.code or 0)


def masked() -> nn.Module:
    torch.manual_seed(0)
    net = digits_net().eval()
    weights = prunus.tensors(net)
    prunus.mask_(net, weights, prunus.allocate(weights, prunus.score(weights, "l1"), prunus.Budget(density=0.1)))
    return net


def cut() -> nn.Module:
    torch.manual_seed(0)
    net = digits_net().eval()
    return prunus.prune_(net, torch.randn(1, 1, 8, 8), budget=prunus.Budget(macs=0.5)).model


def in_a_basis() -> nn.Module:
    torch.manual_seed(0)
    net = digits_net().eval()
    interspace_(net)
    return net


def rewritten() -> nn.Module:
    torch.manual_seed(0)
    net = digits_net().eval()
    groups = prunus.trace(net, torch.randn(1, 1, 8, 8), in_place=False)
    plan = prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(macs=0.5))
    return prunus.shrink_(net, groups, plan).model


@pytest.mark.parametrize("make", [masked, cut, in_a_basis, rewritten])
def test_the_file_runs_as_the_network_does(make, tmp_path: Path) -> None:
    net, x = make(), torch.randn(5, 1, 8, 8)
    assert to_sparse(net, x[:1], tmp_path / "net") < 1e-5
    torch.testing.assert_close(load(tmp_path / "net")(x), net.eval()(x).detach(), rtol=1e-4, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


def test_a_truncated_file_is_refused_with_one_message(tmp_path: Path) -> None:
    to_sparse(masked(), torch.randn(1, 1, 8, 8), tmp_path / "net", verify=False)
    data = (tmp_path / "net").read_bytes()
    for broken in (data[:1000], data[:-8], data[:-4] + b"abcd", b""):
        (tmp_path / "net").write_bytes(broken)
        with pytest.raises(FileError, match="truncated|checksum"):
            load(tmp_path / "net")


def test_another_shape_is_a_clear_error(tmp_path: Path) -> None:
    to_sparse(masked(), torch.randn(1, 1, 8, 8), tmp_path / "net", verify=False)
    with pytest.raises(InputError, match=r"compiled for inputs of shapes \(n, 1, 8, 8\); it was given \(1, 1, 9, 8\)"):
        load(tmp_path / "net")(torch.randn(1, 1, 9, 8))


class Noise(nn.Module):
    def forward(self, x):
        return torch.rand_like(x) + x


def test_a_network_that_differs_is_not_written_and_the_old_file_stays(tmp_path: Path) -> None:
    (tmp_path / "net").write_text("old")
    with pytest.raises(VerificationError, match="engine and torch differ"):
        to_sparse(Noise(), torch.randn(1, 1, 8, 8), tmp_path / "net")
    assert (tmp_path / "net").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(InputError, match="x came by keyword"):
        to_sparse(nn.ReLU(), Inputs((), {"x": torch.randn(1, 1, 8, 8)}), tmp_path / "net")


class Erf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return torch.erf(self.conv(x))


def test_what_torch_has_to_run_is_named_with_its_share_of_time(tmp_path: Path) -> None:
    to_sparse(Erf(), torch.randn(1, 3, 8, 8), tmp_path / "net")
    (said,) = exporters["sparse"].declares["notes"](tmp_path / "net")
    assert "run by torch: erf; " in said and said.endswith("% of the time.")


def test_the_verb_takes_models_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, net in (("masked", masked()), ("cut", cut())):
        prunus.save(net, tmp_path / f"{name}.safetensors", compress=True)
        out = tmp_path / name
        weights = ("--weights", tmp_path / f"{name}.safetensors")
        assert code("export", "prunus:digits_net", *weights, "--to", "sparse", "--out", out, "--json") == 0
        said = json.loads(capsys.readouterr().out)["sparse"]
        assert said["path"] == str(out) and said["max_relative_error"] < 1e-5 and said["notes"] == []
        x = torch.randn(2, 1, 8, 8)
        torch.testing.assert_close(load(out)(x), net(x).detach(), rtol=1e-4, atol=1e-5)
        arguments = ("--backend", "sparse", "--seconds", "0.01", "--json")
        assert code("measure", "prunus:digits_net", *weights, *arguments) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["latency"]["sparse,b1,t1"]["median_ms"] > 0
        assert found["params"] == sum(p.numel() for p in net.parameters())
    assert code("export", "prunus:digits_net", "--to", "sparse") == 2
    assert "--out is missing" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["time first", "states", "samples first"])
def test_networks_of_tokens_are_written(tmp_path, kind: str) -> None:
    torch.manual_seed(0)
    made = {"states": lambda: nn.GRU(6, 4, batch_first=True), "samples first": lambda: encoder(True)}
    net, x = made.get(kind, lambda: encoder(False))().eval(), torch.randn(5, 3, 6)
    assert to_sparse(net, x, tmp_path / "net") < 1e-5
    again, want = load(tmp_path / "net"), net(x)
    got = again(x)
    for a, b in zip(got, want) if kind == "states" else [(got, want)]:
        torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-5)
    if kind == "samples first":
        torch.testing.assert_close(again(x[:2]), net(x[:2]).detach(), rtol=1e-4, atol=1e-5)


def encoder(first: bool) -> nn.Module:
    return nn.TransformerEncoderLayer(6, 2, 8, batch_first=first)
