"""Compiled networks as files, and kernels kept on disk."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")

from prunus.core.backends import backends
from prunus.core.errors import FileError
from prunus.core.inputs import Inputs
from prunus.runtime import compile, jit, load, save
from prunus.runtime.files import DIGEST, KEY, _digest


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Softplus()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()


def test_a_saved_network_gives_the_same_to_the_bit(tmp_path) -> None:
    x = torch.randn(2, 3, 12, 12)
    compiled = compile(network(), x)
    save(compiled, tmp_path / "net")
    again = load(tmp_path / "net", threads=2)
    assert torch.equal(again(x), compiled(x)) and again.report() == compiled.report()
    runs = backends["sparse"].call(tmp_path / "net", Inputs.of(x), 1)
    assert torch.equal(runs(), compiled(x))


def test_damaged_and_strange_files_are_refused(tmp_path) -> None:
    path = tmp_path / "net"
    save(compile(network(), torch.randn(1, 3, 12, 12)), path)
    data = path.read_bytes()
    with pytest.raises(FileError, match="no file"):
        load(tmp_path / "none")
    for broken in (data[: len(data) // 2], data[:-3] + b"abc", b"nothing"):
        (tmp_path / "broken").write_bytes(broken)
        with pytest.raises(FileError, match="truncated|checksum"):
            load(tmp_path / "broken")
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(FileError, match="no compiled network"):
        load(tmp_path / "other")


@pytest.mark.parametrize("operator", ["aten.from_file.default", "os.system", "aten.relu_.default", "prim.x.y"])
def test_a_file_may_ask_for_nothing_but_computing(tmp_path, operator: str) -> None:
    path = tmp_path / "net"
    save(compile(network(), torch.randn(1, 3, 12, 12)), path)
    with safe_open(str(path), "pt") as file:
        whole, tensors = json.loads(file.metadata()[KEY]), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    (node,) = [n for n in whole["nodes"] if n[1] == "torch"]
    node[4]["operator"] = operator
    if operator == "aten.from_file.default":
        node[4]["args"] = ["/etc/hostname"]
    text = json.dumps(whole)
    save_file(tensors, path, {KEY: text, DIGEST: _digest(text, tensors)})
    with pytest.raises(FileError, match="no operator of ATen"):
        load(path)


def test_kernels_are_kept_and_damaged_ones_made_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "kernels"))
    monkeypatch.setattr(jit, "ADDRESSES", {})
    x = torch.randn(1, 3, 12, 12)
    want = compile(network(), x)(x)
    files = list((tmp_path / "kernels").iterdir())
    assert files
    made = []
    real = jit.assemble
    monkeypatch.setattr(jit, "assemble", lambda *given: made.append(1) or real(*given))
    monkeypatch.setattr(jit, "ADDRESSES", {})
    assert torch.equal(compile(network(), x)(x), want) and not made
    files[0].write_bytes(files[0].read_bytes()[:-1] + b"?")
    monkeypatch.setattr(jit, "ADDRESSES", {})
    assert torch.equal(compile(network(), x)(x), want) and len(made) == 1
