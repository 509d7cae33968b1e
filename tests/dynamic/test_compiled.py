"""A network with gates in the sparse engine: what it gives, what it reads, and that Python has no part in it."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

pytest.importorskip("llvmlite", reason="the sparse engine's compiler is not installed")

from prunus.core.backends import backends
from prunus.core.inputs import Inputs
from prunus.dynamic import dynamic_, fixed_, gates, watched
from prunus.export import to_sparse
from prunus.runtime import compile, load, memory, save
from prunus.runtime.plain import PlainNetwork
from tests.dynamic.problem import Basic, Separable, settled

METHODS = ("manidp", "fbs", "channel-gating")


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRUNUS_CACHE", str(tmp_path_factory.mktemp("kernels")))
        yield


class Bottleneck(nn.Module):
    """A stem and a bottleneck of stride 2 with a shortcut; the norm of the stem is the block's own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.a, self.n = nn.Conv2d(8, 5, 1, bias=False), nn.BatchNorm2d(5)
        self.b, self.m = nn.Conv2d(5, 5, 3, 2, 1, bias=False), nn.BatchNorm2d(5)
        self.c, self.o = nn.Conv2d(5, 20, 1, bias=False), nn.BatchNorm2d(20)
        self.short = nn.Sequential(nn.Conv2d(8, 20, 1, 2, bias=False), nn.BatchNorm2d(20))
        self.linear = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.m(self.b(F.relu(self.n(self.a(x))))))
        return self.linear(F.relu(self.o(self.c(y)) + self.short(x)).mean((2, 3)))


class Plain(nn.Module):
    """Convolutions, norms and rectifiers in a row, with pools of both kinds; numbers of channels are odd."""

    def __init__(self) -> None:
        super().__init__()

        def layer(a: int, b: int) -> list[nn.Module]:
            return [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]

        pools = nn.MaxPool2d(2), nn.AvgPool2d(2)
        self.features = nn.Sequential(*layer(3, 7), *layer(7, 9), pools[0], *layer(9, 17), pools[1], *layer(17, 13))
        self.linear = nn.Linear(13, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def gated(make: Any, method: str, size: tuple[int, int] = (8, 8)) -> tuple[nn.Module, Tensor]:
    """A network whose gates close other channels for every input, and such inputs."""
    net = settled(make())
    random = torch.Generator().manual_seed(1)
    x = torch.randn(3, 3, *size, generator=random) + 2 * torch.randn(3, 3, 1, 1, generator=random)
    dynamic_(net, x, method)
    torch.manual_seed(3)
    for gate in gates(net):
        for p in gate.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=1.0)
        if method == "fbs":
            gate.count.fill_(max(gate.outputs // 2, 1))
        elif method == "manidp":
            gate.threshold.fill_(1.0)
        else:
            nn.init.zeros_(gate.expand.bias)
    return net, x


def equal(a: Tensor, b: Tensor) -> None:
    assert a.shape == b.shape and bool(b.isfinite().all()) and float(b.abs().max()) > 0
    assert float((a - b).abs().max()) <= 1e-5 * float(b.abs().max()), float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [Basic, Separable, Bottleneck, Plain])
def test_it_gives_what_the_masked_network_gives(make: Any, method: str) -> None:
    net, x = gated(make, method, (13, 11))
    with watched(net) as tapes, torch.no_grad():
        net(x)
    assert any(len(tape[0].active.unique(dim=0)) > 1 for tape in tapes), "the inputs should have other channels each"
    fast = compile(net, x)
    assert fast.images == 1 and "torch" not in fast.report() and len(fast.segments) == 1
    with torch.no_grad():
        equal(fast(x), net(x))
        equal(fast(x[1:2]), net(x[1:2]))


@pytest.mark.parametrize("make", [Basic, Separable, Plain])
def test_what_is_off_is_not_read(make: Any) -> None:
    """Whatever lies in the memory that a call finds, it gives the same."""
    net, x = gated(make, "manidp", (9, 17))
    fast = compile(net, x)
    right = fast(x)
    for rubbish in (float("nan"), float("inf")):
        fast.arena.view(np.float32)[:] = rubbish
        assert torch.equal(fast(x), right)


def test_active_channels_alone_are_written() -> None:
    """Between the gated layers of a block, maps have rubbish where channels are off, and it stays there."""
    net, x = gated(Basic, "fbs")
    fast = compile(net, x[:1])
    partial = [v for v in fast.values.values() if v.node.kind == "conv" and v.node.numbers.get("partial")]
    assert len(partial) == 2
    value = partial[1]
    ((layout, _), buffer), *_ = value.forms.items()
    end = [i for i, s in enumerate(fast.steps) if s.kind == "listed"][2] + 1  # a1, a2, b1
    fast.given[0].copy_(x[:1])
    held = fast.arena[buffer.offset : buffer.offset + value.channels * layout.plane].view(np.float32)
    _run(fast, 0, end - 1)
    held[:] = np.nan
    _run(fast, end - 1, end)
    inner = [layout.at(r, 0) // 4 + i for r in range(layout.tile[0]) for i in range(layout.tile[1] * layout.lanes)]
    planes = held.reshape(value.channels, -1)[:, inner]
    off = np.isnan(planes).all(1)
    assert not np.isnan(planes[~off]).any()
    gate = fast.values[value.node.numbers["out"]]
    mask = fast._view(gate.forms[None, 0.0], gate)
    assert off.tolist() == (mask[0] == 0).tolist() and 0 < off.sum() < len(off)


def _run(fast: Any, start: int, end: int) -> None:
    """Runs the kernels of some steps."""
    table = int(fast.segments[0].view(np.int64)[0])
    steps = np.ctypeslib.as_array((ctypes.c_int64 * (2 * end)).from_address(table)).reshape(-1, 2)
    for kernel, arguments in steps[start:]:
        memory.SIGNATURE(int(kernel))(int(arguments), 0, 1)


def test_nothing_around_the_memory_of_a_network_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    guard, kept = 4096, []
    plain = memory.buffer

    def guarded(size: int) -> np.ndarray:
        whole = plain(size + 2 * guard)
        whole[:guard] = whole[guard + size :] = 0xA5
        kept.append((whole, size))
        return whole[guard : guard + size]

    monkeypatch.setattr(memory, "buffer", guarded)
    for make, method in ((Basic, "manidp"), (Separable, "fbs"), (Plain, "channel-gating")):
        net, x = gated(make, method, (7, 19))
        for threads in (1, 3):
            with torch.no_grad():
                equal(compile(net, x, threads=threads)(x), net(x))
    assert len(kept) > 100
    assert all((w[:guard] == 0xA5).all() and (w[guard + size :] == 0xA5).all() for w, size in kept)


@pytest.mark.parametrize("count", [0, 1, 100])
def test_all_channels_on_or_all_but_the_floor_off(count: int) -> None:
    net, x = gated(Basic, "manidp")
    for gate in gates(net):
        gate.threshold.fill_({0: -1.0, 1: 1e6, 100: 0.5}[count])  # on: what is not zero; the floor; about half
    with torch.no_grad():
        equal(compile(net, x)(x), net(x))


def test_fixed_and_opened_gates() -> None:
    net, x = gated(Basic, "manidp")
    fixed_(net, [3, 4, 5, 6])
    with torch.no_grad():
        equal(compile(net, x)(x), net(x))
        for gate in gates(net):
            gate.open = True
        equal(compile(net, x)(x), net(x))


def test_sums_of_a_gated_map_and_of_grouped_layers_are_masked_whole() -> None:
    """Where a mask cannot go into the convolution before, it is a product."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, groups=2)
            self.b, self.linear = nn.Conv2d(12, 12, 3, padding=1), nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(F.relu(self.stem(x)))
            return self.linear(F.relu(self.b(y)).add(y).mean((2, 3)))

    net, x = gated(Odd, "channel-gating", (12, 12))
    fast = compile(net, x)
    with torch.no_grad():
        equal(fast(x), net(x))


@pytest.mark.parametrize("make", [Basic, Separable, Plain])
def test_layers_whose_zeros_save_more_than_lists_are_computed_whole(make: Any) -> None:
    net, x = gated(make, "channel-gating", (24, 24))
    some = [m for m in net.modules() if isinstance(m, nn.Conv2d)][1::2]
    for conv in some:
        conv.weight.data *= torch.rand_like(conv.weight) < 0.15
    for bias in (1.0, -1.0):  # all channels are on; all but the floor are off
        for gate in gates(net):
            gate.expand.weight.data.zero_()
            gate.expand.bias.data.fill_(bias)
        fast = compile(net, x)
        with torch.no_grad():
            equal(fast(x), net(x))
        assert ("masked" in fast.report()) == (bias > 0) and "listed" in fast.report()


@pytest.mark.parametrize("make", [Basic, Separable])
def test_files_and_torch_alone(make: Any, tmp_path: Any) -> None:
    net, x = gated(make, "fbs")
    fast = compile(net, x)
    save(fast, tmp_path / "net.safetensors")
    assert torch.equal(load(tmp_path / "net.safetensors")(x), fast(x))
    plain = PlainNetwork(fast.graph, images=1, threads=1)
    with torch.no_grad():
        equal(plain(x), net(x))


def test_gates_stay_what_they_were_outside_of_the_engine() -> None:
    net, x = gated(Separable, "manidp")
    with torch.no_grad():
        before = net(x)
        compile(net, x)
        assert torch.equal(net(x), before)
    assert all(gate._saliency is None for gate in gates(net))


def test_measured_and_exported_as_it_is(tmp_path: Any) -> None:
    net, x = gated(Basic, "manidp")
    error = to_sparse(net, x, tmp_path / "net.sparse")
    assert error is not None and error < 1e-5
    with torch.no_grad():
        equal(load(tmp_path / "net.sparse")(x), net(x))
        equal(backends["sparse"].call(net, Inputs.of(x), 1)(), net(x))
