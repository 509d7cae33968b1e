"""What is wrong is refused with what to do, and what is damaged never runs."""

from __future__ import annotations

import json
import random
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")

from prunus.core.errors import FileError, InputError
from prunus.runtime import DynamicConv2d, compile, jit, load, save
from prunus.runtime.files import DIGEST, KEY, _digest
from prunus.runtime.profile import by_torch


class Mixed(nn.Module):
    """Layers with kernels, and between them two operators that only torch has."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(F.relu(self.a(x)))
        return self.last(F.softplus(self.b(y)).mean((2, 3)))


def mixed() -> nn.Module:
    torch.manual_seed(0)
    return Mixed().eval()


def test_operators_without_a_kernel_are_named_and_the_rest_runs() -> None:
    net, x = mixed(), torch.randn(2, 3, 9, 9)
    compiled = compile(net, x)
    assert compiled.report()["torch"] == ["group_norm", "softplus"]
    kernels = [name for kind, names in compiled.report().items() if kind not in ("torch", "layout") for name in names]
    assert sorted(kernels) == ["conv2d", "conv2d", "linear", "mean"]
    torch.testing.assert_close(compiled(x), net(x).detach(), rtol=1e-5, atol=1e-5)
    said = by_torch(compiled)
    assert "group_norm" in said and "softplus" in said and "%" in said


@pytest.mark.parametrize(
    "wrong",
    [
        torch.randn(1, 3, 9, 9).double(),
        torch.randn(1, 3, 9, 9).half(),
        torch.ones(1, 3, 9, 9, dtype=torch.int64),
        torch.randn(1, 3, 9, 9, device="meta"),
        torch.randn(1, 3, 9, 9).to_sparse(),
    ],
)
def test_inputs_of_another_kind_are_refused(wrong: Tensor) -> None:
    compiled = compile(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 9, 9))
    with pytest.raises(InputError, match=r"compiled for torch\.float32 in the processor's memory.*Convert"):
        compiled(wrong)
    with pytest.raises(InputError, match="was compiled for inputs of shapes"):
        compiled(np.zeros((1, 3, 9, 9), dtype=np.float32))
    for many in ((), (torch.randn(1, 3, 9, 9),) * 2, (None,)):
        with pytest.raises(InputError, match="was compiled for inputs of shapes"):
            compiled(*many)


def test_inputs_may_lie_in_memory_as_they_like() -> None:
    net = mixed()
    x = torch.randn(3, 3, 9, 9)
    compiled, want = compile(net, x), net(x).detach()
    turned = x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    for given in (x.to(memory_format=torch.channels_last), turned, torch.cat([x, x], 3)[..., :9]):
        torch.testing.assert_close(compiled(given), want, rtol=1e-5, atol=1e-5)
    assert not compiled(x.clone().requires_grad_()).requires_grad


def test_a_processor_without_vectors_has_no_lists_of_channels(monkeypatch) -> None:
    monkeypatch.setattr(jit, "machine", lambda: jit.lanes_of({}, "x86_64"))
    with pytest.raises(InputError, match="has none of them"):
        DynamicConv2d(nn.Conv2d(3, 4, 3), (1, 3, 9, 9))


def test_a_damaged_file_is_refused_wherever_the_damage_is(tmp_path) -> None:
    """Any bit may be wrong, and any end be missing: an error that says so, or the same outputs."""
    net, x = mixed(), torch.randn(1, 3, 9, 9)
    compiled, path = compile(net, x), tmp_path / "net"
    save(compiled, path)
    want, data, draw = compiled(x), path.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(data[:8], "little")
    places = [draw.randrange(header) for _ in range(60)] + [draw.randrange(header, len(data)) for _ in range(20)]
    refused = 0
    for place in [*range(8), *places]:
        broken = bytearray(data)
        broken[place] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(broken))
        try:
            assert torch.equal(load(path)(x), want), f"a bit of byte {place} changed what the network gives"
        except FileError:
            refused += 1
    assert refused > 80
    for length in [0, 7, 8, header // 2, header, *(draw.randrange(len(data)) for _ in range(20)), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(FileError):
            load(path)


@pytest.mark.parametrize("what", ["kind", "shape", "input", "tensor", "number", "missing"])
def test_a_file_that_holds_no_network_is_refused(tmp_path, what: str) -> None:
    """The checksum is right, but somebody wrote nonsense."""
    path = tmp_path / "net"
    save(compile(mixed(), torch.randn(1, 3, 9, 9)), path)
    with safe_open(str(path), "pt") as file:
        whole, tensors = json.loads(file.metadata()[KEY]), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    conv = next(n for n in whole["nodes"] if n[1] == "conv")
    if what == "kind":
        conv[1] = "magic"
    elif what == "shape":
        conv[3] = [1, 8]
    elif what == "input":
        conv[2] = [12345]
    elif what == "tensor":
        conv[5] = ["weight", "none"]
    elif what == "number":
        conv[4]["stride"] = "two"
    else:
        del whole["outputs"]
    text = json.dumps(whole)
    save_file(tensors, path, {KEY: text, DIGEST: _digest(text, tensors)})
    with pytest.raises(FileError, match="no network that can be run"):
        load(path)


@pytest.mark.parametrize("threads", [1, 2])
def test_eight_threads_call_one_network(threads: int) -> None:
    net = mixed()
    compiled = compile(net, torch.randn(2, 3, 9, 9), threads=threads)
    inputs = [torch.randn(1 + i % 5, 3, 9, 9) for i in range(80)]
    with torch.no_grad():
        want = [net(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for got, wanted in zip(pool.map(compiled, inputs), want, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_no_warning_where_nothing_is_wrong() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile(mixed(), torch.randn(1, 3, 9, 9))(torch.randn(4, 3, 9, 9))
