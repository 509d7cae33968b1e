"""Files of masked networks: small, without loss, and safe to read."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import prunus
from prunus.core import FileError
from prunus.surgery.packed import pack, unpack


def sparse(density: float, n: int = 100_000, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=g) * (torch.rand(n, generator=g) < density)


def information(t: torch.Tensor) -> float:
    """Bytes: 32 bits a value, and the entropy of where they are."""
    d = float(t.ne(0).double().mean())
    entropy = -(d * math.log2(d) + (1 - d) * math.log2(1 - d)) if 0 < d < 1 else 0.0
    return t.numel() * (32 * d + entropy) / 8


@pytest.mark.parametrize("density", [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9])
def test_size_is_close_to_the_information(density):
    t = sparse(density).abs() * 1.0
    packed, _ = pack({"w": t})
    assert sum(p.nbytes for p in packed.values()) < 1.1 * information(t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize("density", [0.0, 0.0005, 0.03, 0.3, 1.0])
def test_nothing_is_lost(dtype, density):
    t = (sparse(density, 3001) if density else torch.zeros(3001)).to(dtype)
    t[5] = -0.0
    t[7] = float("nan")
    tensors = {"w": t, "n": torch.arange(3), "empty": torch.zeros(0, 2), "one": torch.zeros(())}
    packed, shapes = pack(tensors)
    again = unpack(packed, shapes)
    assert again.keys() == tensors.keys()
    for name, value in tensors.items():
        assert again[name].dtype == value.dtype and again[name].shape == value.shape
        assert torch.equal(again[name].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8))


def test_gaps_of_exactly_a_byte():
    for gap in (254, 255, 256, 509, 510, 511, 1020):
        t = torch.zeros(5000)
        t[gap] = t[gap + 1] = t[2 * gap + 2] = 1
        packed, shapes = pack({"w": t})
        assert "w#gaps" in packed and torch.equal(unpack(packed, shapes)["w"], t)


def masked() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3))
    groups = prunus.tensors(model)
    prunus.mask_(model, groups, prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(density=0.05)))
    return model


def factory() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3))


def test_a_file_gives_the_same_network(tmp_path):
    model = masked()
    prunus.save(model, tmp_path / "whole.safetensors")
    prunus.save(model, tmp_path / "small.safetensors", {"note": "mine"}, compress=True)
    assert (tmp_path / "small.safetensors").stat().st_size < 0.2 * (tmp_path / "whole.safetensors").stat().st_size
    again = prunus.load(tmp_path / "small.safetensors", factory)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def test_with_channels_cut_as_well(tmp_path):
    model = masked()
    prunus.prune_(model, torch.zeros(1, 3, 8, 8), budget=prunus.Budget(params=0.5))
    prunus.save(model, tmp_path / "net.safetensors", compress=True)
    again = prunus.load(tmp_path / "net.safetensors", factory)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.eval()(x), again.eval()(x))


@pytest.mark.parametrize("how", ["missing", "too long", "too many", "values"])
def test_a_damaged_file_is_refused(tmp_path, how):
    path = tmp_path / "net.safetensors"
    prunus.save(masked(), path, compress=True)
    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata())
    tensors = load_file(path)
    name = "3.weight#gaps"
    if how == "missing":
        del tensors[name]
    elif how == "too long":
        tensors[name] = torch.full_like(tensors[name], 254)
    elif how == "too many":
        tensors[name] = torch.cat([tensors[name], tensors[name][:1]])
    else:
        tensors["3.weight#values"] = tensors["3.weight#values"] + 1
    save_file(tensors, path, header)
    model = factory()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(FileError, match="net.safetensors"):
        prunus.load_(model, path)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def test_what_is_written_is_never_taken_for_a_trap(monkeypatch):
    monkeypatch.setattr("prunus.surgery.packed.ZEROS", 10_000)
    tensors = {str(i): torch.zeros(4000).index_fill_(0, torch.tensor([0]), i + 1.0) for i in range(5)}
    packed, shapes = pack(tensors)
    assert {name[1:] for name in packed} == {"#values", "#gaps", "#bits"}
    assert all(torch.equal(t, tensors[name]) for name, t in unpack(packed, shapes).items())


def test_shapes_that_promise_more_than_the_parts_hold_are_refused_before_anything_is_made():
    packed, _ = pack({"w": torch.eye(64)})
    for shape in ([64, 1 << 30], [1 << 62, 1 << 62], [-64, -64], [64.0, 64], "w"):
        with pytest.raises(FileError, match="do not fit"):
            unpack(packed, json.dumps({"w": shape}))
