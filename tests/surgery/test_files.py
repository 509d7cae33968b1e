"""Save and load: bit-equal, composed, and safe against damage."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import prunus
from prunus.core import Added
from prunus.surgery.memory import replace_
from prunus.zoo import densenet_bc40, resnet20
from tests.tracing.networks import randomise

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    torch.manual_seed(0)
    model = randomise(resnet20()).to(memory_format=torch.channels_last)
    for _ in range(2):
        prunus.prune_(model, X, budget=prunus.Budget(macs=0.7))
    path = tmp_path_factory.mktemp("files") / "model.safetensors"
    prunus.save(model, path)
    return model, path


def test_same_outputs_to_the_bit_in_a_new_process(cut, tmp_path):
    model, path = cut
    torch.save(model(X), tmp_path / "out.pt")
    code = (
        f"import torch, prunus; from prunus.zoo import resnet20; torch.set_num_threads({torch.get_num_threads()})\n"
        f"model = prunus.load({str(path)!r}, resnet20).eval()\n"
        f"x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))\n"
        f"assert torch.equal(model(x), torch.load({str(tmp_path / 'out.pt')!r}, weights_only=True))\n"
        f"assert model.conv1.weight.is_contiguous(memory_format=torch.channels_last)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_cumulative_plan_is_in_original_coordinates(cut):
    model, path = cut
    plan = prunus.read_plan(path)
    fresh = resnet20()
    for name, tensor in plan.tensors.items():
        assert tensor.shape == tuple(
            fresh.get_parameter(name).shape if "running" not in name else fresh.get_buffer(name).shape
        )
        assert tensor.left == tuple(model.state_dict()[name].shape)
    assert plan == prunus.plan_of(model)


def test_a_loaded_network_can_be_cut_again(cut):
    model = prunus.load(cut[1], resnet20)
    prunus.prune_(model, X, budget=prunus.Budget(macs=0.9))
    assert prunus.plan_of(model) != prunus.read_plan(cut[1])


def test_selections_and_added_biases_come_back(tmp_path):
    model = randomise(densenet_bc40())
    prunus.prune_(model, X, budget=prunus.Budget(macs=0.6), criterion="bn-gamma", select=True, absorb=True)
    kinds = {a.kind for a in prunus.plan_of(model).added}
    assert kinds == {"select", "bias"}
    prunus.save(model, tmp_path / "m.safetensors")
    assert torch.equal(prunus.load(tmp_path / "m.safetensors", densenet_bc40).eval()(X), model(X))


def test_an_uncut_network_is_saved_and_loaded(tmp_path):
    model = resnet20()
    prunus.save(model, tmp_path / "m.safetensors", {"note": "whole"})
    other = prunus.load(tmp_path / "m.safetensors", resnet20)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))


def damaged(kind, path, out):
    data = path.read_bytes()
    if kind == "truncated":
        out.write_bytes(data[: len(data) // 2])
    elif kind == "flipped":
        out.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif kind == "text":
        out.write_text("hello")
    else:
        with safe_open(path, "pt") as file:
            header, tensors = dict(file.metadata()), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        plan = json.loads(header["prunus"])
        if kind == "edited plan":
            next(iter(plan["groups"].values()))["kept"].pop()
            header["prunus"] = json.dumps(plan)
        else:
            header.pop("prunus")
        save_file(tensors, out, header)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "truncated"),
        ("flipped", "checksum"),
        ("text", "not a safetensors"),
        ("edited plan", "checksum"),
        ("no plan", "holds no plan"),
    ],
)
def test_a_damaged_file_is_one_clear_error_and_changes_nothing(cut, tmp_path, kind, message):
    bad = tmp_path / "bad.safetensors"
    damaged(kind, cut[1], bad)
    model = resnet20()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(prunus.FileError, match=message):
        prunus.load_(model, bad)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_another_architecture_is_refused(cut):
    model = densenet_bc40()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(prunus.FileError, match="another architecture"):
        prunus.load_(model, cut[1])
    with pytest.raises(prunus.FileError, match="no such file"):
        prunus.load_(model, "nowhere.safetensors")
    assert model.state_dict().keys() == state.keys()


def test_a_file_that_was_there_survives_a_full_disk(cut, tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"precious")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prunus.surgery.files.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        prunus.save(cut[0], path)
    assert path.read_bytes() == b"precious" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("what", ["index", "module"])
def test_a_crafted_plan_is_refused(cut, tmp_path, what):
    plan = prunus.read_plan(cut[1])
    name, tensor = next((n, t) for n, t in plan.tensors.items() if 0 in t.kept)
    far = (*tensor.kept[0][:-1], 99)
    added = (Added("nowhere.bias", "bias", (3,)),)
    bad = replace(plan, tensors={**plan.tensors, name: replace(tensor, kept={**tensor.kept, 0: far})})
    bad = bad if what == "index" else replace(plan, added=added)
    model = prunus.load(cut[1], resnet20)
    replace_(model, bad)
    prunus.save(model, tmp_path / "bad.safetensors")
    with pytest.raises(prunus.FileError, match="bad.safetensors: .*(99 is outside|no place here)"):
        prunus.load(tmp_path / "bad.safetensors", resnet20)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_sparse_tensor_is_named_or_built_by_the_network(layout, tmp_path):
    class Graph(torch.nn.Module):
        def __init__(self, persistent):
            super().__init__()
            self.one, self.two = torch.nn.Linear(3, 8), torch.nn.Linear(8, 2)
            edges = torch.eye(4).roll(1, 0).to_sparse(layout=layout)
            self.register_buffer("edges", edges, persistent=persistent)

        def forward(self, x):
            return self.two(self.edges @ self.one(x).relu())

    x = torch.randn(4, 3)
    with pytest.raises(prunus.InputError, match="'edges' is a sparse tensor .*persistent=False"):
        prunus.save(Graph(True), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    model = Graph(False)
    prunus.prune_(model, x, budget=prunus.Budget(params=0.7))
    prunus.save(model, tmp_path / "b")
    assert torch.equal(prunus.load(tmp_path / "b", lambda: Graph(False))(x), model(x))
