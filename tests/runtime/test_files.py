"""Compiled networks as files, and kernels kept on disk."""

from __future__ import annotations

import json
import os
import warnings

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")

from prunus.core.backends import backends
from prunus.core.errors import FileError
from prunus.core.inputs import Inputs
from prunus.runtime import cache, compile, jit, load, save
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
    with pytest.raises(FileError, match="none of the operators that the engine gives to torch"):
        load(path)


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A cache of its own, and a function that compiles anew: how many kernels it made, and what the network gives."""
    monkeypatch.setenv("PRUNUS_CACHE", str(tmp_path / "shared"))
    made, real, x = [], jit.assemble, torch.randn(1, 3, 12, 12)
    monkeypatch.setattr(jit, "assemble", lambda *given: made.append(1) or real(*given))

    def run() -> tuple[int, torch.Tensor]:
        monkeypatch.setattr(jit, "ADDRESSES", {})
        made.clear()
        y = compile(network(), x)(x)
        return len(made), y

    return run


def test_kernels_are_kept_and_damaged_ones_made_again(kept) -> None:
    many, want = kept()
    files = sorted(cache.folder().iterdir())
    assert many == len(files) > 3
    again, got = kept()
    assert again == 0 and torch.equal(got, want)
    whole = files[0].read_bytes()
    for damaged in (whole[:-1] + b"?", whole[:40], b"", files[1].read_bytes()):
        files[0].write_bytes(damaged)
        again, got = kept()
        assert again == 1 and torch.equal(got, want)


def test_kernels_under_each_others_names_do_not_run(kept) -> None:
    _, want = kept()
    files = sorted(cache.folder().iterdir())
    held = [f.read_bytes() for f in files]
    for file, data in zip(files, held[1:] + held[:1]):
        file.write_bytes(data)
    again, got = kept()
    assert again == len(files) and torch.equal(got, want)


def test_kernels_lie_apart_from_what_people_share(kept, tmp_path) -> None:
    kept()
    assert not [p for p in (tmp_path / "shared").iterdir() if p.is_file()]
    assert cache.folder().parent == tmp_path / "shared" and cache.folder().stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners and modes here")
@pytest.mark.parametrize("how", ["folder", "file", "link", "owner"])
def test_what_others_may_write_to_is_not_run(kept, how: str, monkeypatch) -> None:
    many, want = kept()
    monkeypatch.setattr(cache, "_SAID", set())
    file = sorted(cache.folder().iterdir())[0]
    if how == "folder":
        cache.folder().chmod(0o770)
    elif how == "file":
        file.chmod(0o666)
    elif how == "owner":
        at, another = cache.folder(), os.getuid() + 1
        monkeypatch.setattr(cache, "folder", lambda: at)
        monkeypatch.setattr(os, "getuid", lambda: another)
    else:
        cache.folder().rename(cache.folder().with_name("elsewhere"))
        cache.folder().symlink_to(cache.folder().with_name("elsewhere"))
    with pytest.warns(UserWarning, match="no kernels are read from it") as said:
        again, got = kept()
    assert again == (1 if how == "file" else many) and torch.equal(got, want)
    assert len([w for w in said if "kernels" in str(w.message)]) == 1
    if how != "file":
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kept()  # said once
