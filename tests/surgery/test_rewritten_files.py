"""Rewritten networks leave and come back: files, ONNX, torch.export, copies; and what a crafted file may not do."""

from __future__ import annotations

import copy
import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from torch import nn

import prunus
from prunus.core import Inputs
from prunus.export.onnx import to_onnx
from prunus.surgery import files
from prunus.surgery.operators import resolve
from tests.surgery.rewriting import Attention, Fixed, Recurrent, Structured, half, whole

X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    small, _, _ = half(Fixed().to(memory_format=torch.channels_last), X)
    small.eval()
    path = tmp_path_factory.mktemp("rewritten") / "small.safetensors"
    prunus.save(small, path, {"note": "mine"})
    return small, path


def test_the_same_to_the_bit_in_a_new_process(saved, tmp_path):
    small, path = saved
    torch.save(small(X), tmp_path / "out.pt")
    code = (
        f"import torch, prunus; torch.set_num_threads({torch.get_num_threads()})\n"
        f"net = prunus.load({str(path)!r})\n"
        "x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(5))\n"
        f"assert torch.equal(net(x), torch.load({str(tmp_path / 'out.pt')!r}, weights_only=True))\n"
        "net.train()(x).sum().backward()\n"
        "assert net.conv.weight.is_contiguous(memory_format=torch.channels_last)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert prunus.plan_of(prunus.load(path)) == prunus.plan_of(small)
    assert files.read_metadata(path) == {"note": "mine"}


def test_structures_come_back_as_plain_containers(tmp_path):
    model = Structured()
    example = Inputs(({"x": [torch.randn(2, 6), torch.randn(2, 4)]}, 3))
    small, _, _ = half(model, example)
    small.mid.bias.requires_grad_(False)
    prunus.save(small, tmp_path / "m.safetensors")
    loaded = prunus.load(tmp_path / "m.safetensors")
    x = {"x": [torch.randn(5, 6), torch.randn(5, 4)]}
    found, expected = loaded(x, times=3), small.eval()(x, 3)
    assert set(found) == {"logits", "hidden", "count", "loss"} and found["count"] == 5 and found["loss"] is None
    assert torch.equal(found["logits"], expected.logits) and torch.equal(found["hidden"][0], expected.hidden[0])
    assert loaded.b.weight is loaded.a.weight and loaded.state_dict().keys() == model.state_dict().keys()
    assert not loaded.mid.bias.requires_grad and loaded.head.bias.requires_grad


def test_a_loaded_network_trains_as_the_one_saved(saved):
    small, path = saved
    outs = []
    for net in (copy.deepcopy(small), prunus.load(path)):
        net.train()
        torch.manual_seed(3)
        out = net(X)
        out.sum().backward()
        outs.append((out, net.conv.weight.grad, net.norm.running_var))
    assert all(torch.equal(a, b) for a, b in zip(*outs))


def test_a_loaded_network_is_cut_again(saved):
    once = prunus.load(saved[1])
    twice, _, _ = half(once, X, seed=3)
    assert prunus.plan_of(twice).tensors["conv.weight"].shape == (8, 3, 3, 3)
    assert twice.conv.weight.shape[0] < once.conv.weight.shape[0]


def test_factories_are_told_apart(saved, tmp_path):
    with pytest.raises(prunus.FileError, match=r"without a factory: prunus.load\(path\)"):
        prunus.load(saved[1], Fixed)
    prunus.save(Fixed(), tmp_path / "plain.safetensors")
    with pytest.raises(prunus.FileError, match="Give the function that builds the original"):
        prunus.load(tmp_path / "plain.safetensors")


def crafted(path, out, change):
    """The file with its operators changed and every checksum right: what an attacker would write."""
    with safe_open(path, "pt") as file:
        header, tensors = dict(file.metadata()), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    data = json.loads(header[files.GRAPH])
    change(data)
    header[files.GRAPH] = json.dumps(data)
    header[files.DIGEST] = files.digest(tensors, header)
    files.save_file(tensors, out, header)


def _op(name):
    return lambda data: data["program"]["eval"]["steps"][0].__setitem__(0, name)


CRAFTED = {
    "file": (_op("aten.from_file.default"), "'aten.from_file.default' is none"),
    "print": (_op("aten._print.default"), "'aten._print.default' is none"),
    "storage": (_op("aten.set_.source_Tensor"), "is none that a rewritten network may call"),
    "namespace": (_op("quantized.add.default"), "is none that a rewritten network may call"),
    "attribute": (_op("aten.__class__.__init__"), "is none that a rewritten network may call"),
    "train": (lambda d: d["program"]["train"]["steps"][-1].__setitem__(0, "aten.save.default"), "aten.save.default"),
    "unknown tensor": (lambda d: d["program"]["eval"]["steps"][0][1].__setitem__(0, {"tensor": 99}), "made by none"),
    "numbers": (lambda d: d["program"]["eval"]["steps"][0].__setitem__(3, [10**12]), "made by none|not numbered"),
    "argument": (lambda d: d["program"]["eval"]["steps"][0][1].append({"dtype": "load"}), "given 'load'"),
    "name": (lambda d: d["tensors"].__setitem__("forward", d["tensors"]["conv.weight"]), "cannot be the name"),
    "dunder": (lambda d: d["tensors"].__setitem__("__class__.x", d["tensors"]["conv.weight"]), "cannot be the name"),
    "missing": (lambda d: d["tensors"].pop("conv.weight"), "nothing is said of the tensor"),
    "format": (lambda d: d["program"].__setitem__("format", 99), "another format"),
    "shape": (lambda d: d.pop("program"), "not a rewritten network"),
    "order": (lambda d: d["tensors"]["conv.weight"].__setitem__("order", [0, 0, 1, 2]), "not a rewritten network"),
}


@pytest.mark.parametrize("kind", CRAFTED)
def test_a_crafted_file_is_one_clear_error(saved, tmp_path, kind):
    change, message = CRAFTED[kind]
    crafted(saved[1], tmp_path / "bad.safetensors", change)
    with pytest.raises(prunus.FileError, match=message):
        prunus.load(tmp_path / "bad.safetensors")


def test_a_damaged_file_is_one_clear_error(saved, tmp_path):
    data = saved[1].read_bytes()
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(data[: len(data) // 2])
    with pytest.raises(prunus.FileError, match="truncated"):
        prunus.load(bad)
    bad.write_bytes(data.replace(b"aten.relu_.default", b"aten.tanh_.default"))
    with pytest.raises(prunus.FileError, match="checksum"):
        prunus.load(bad)


@pytest.mark.parametrize("name", ["add.t", "warn.default", "manual_seed.default", "item.default", "set_data.default"])
def test_what_is_no_computation_on_tensors_is_refused(name):
    assert resolve("aten.add.Tensor") is torch.ops.aten.add.Tensor
    with pytest.raises(prunus.FileError):
        resolve(f"aten.{name}")


@pytest.mark.parametrize("make", [Fixed, lambda: Recurrent(nn.GRU), Attention], ids=["fixed", "gru", "attention"])
def test_onnx_with_any_batch(make, tmp_path):
    torch.manual_seed(0)
    x = X if make is Fixed else torch.randn(1, 4, 5)
    small, _, _ = half(make().eval(), x)
    assert to_onnx(small, x, tmp_path / "net.onnx") < 1e-4


def test_torch_export_with_a_free_batch():
    small = whole(Fixed().eval(), X)
    batch = torch.export.Dim("batch")
    program = torch.export.export(small, (X,), dynamic_shapes={"args": ({0: batch},)})
    x = torch.randn(5, 3, 6, 6)
    assert torch.allclose(program.module()(x), small(x), atol=1e-6)


def test_copies_are_independent(saved):
    small = saved[0]
    twin = copy.deepcopy(small)
    expected = small(X)
    with torch.no_grad():
        twin.conv.weight.zero_()
        twin.head.bias.zero_()
    assert torch.equal(small(X), expected) and not torch.equal(twin(X), expected)
    assert prunus.plan_of(twin) == prunus.plan_of(small)
