"""Networks whose every buffer lies beside pages that nobody may touch; who does ends its process.

    python -m tests.runtime.guarded

Prints a line a case: a name of `NETWORKS` or ``dynamic``; ``end`` (every buffer ends exactly before such pages) or
``start`` (begins right behind them); what was run: ``sound``, or the kind of a step that was made to write beside its
buffer; how the case's process, a fork of this one, ended: ``well``, ``wrong`` or ``killed``; the kinds of its steps.
Activations are filled with what is not a number before every call, so that reading what nobody wrote is seen too.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.bases import interspace_, interspaced
from prunus.bases.basis import coefficients
from prunus.runtime import DynamicConv2d, build, compile, dynamic, engine, forms, memory
from prunus.runtime.graph import Graph

PAGE = mmap.PAGESIZE
GUARD = 64 * PAGE
LIBC = ctypes.CDLL(None, use_errno=True)
AT_END = True
BREAK = ""  # the kind of step whose first one is broken


def protect(address: int) -> None:
    """Makes memory such that it ends who touches it."""
    if LIBC.mprotect(ctypes.c_void_p(address), GUARD, 0):
        raise OSError(ctypes.get_errno(), "mprotect")


def guarded(size: int) -> np.ndarray:
    """`size` zero bytes with such pages right behind them, or right before."""
    whole = -(-size // PAGE) * PAGE
    held = np.frombuffer(mmap.mmap(-1, whole + 2 * GUARD), dtype=np.uint8)
    protect(held.ctypes.data)
    protect(held.ctypes.data + GUARD + whole)
    start = GUARD + (whole - size if AT_END else 0)
    return held[start : start + size]


def aligned(array: np.ndarray) -> np.ndarray:
    """`memory.aligned`, of not a byte more than the array has."""
    copy = guarded(array.nbytes)
    copy[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return copy


GUARDS: list[int] = []  # of the arena that is arranged, to be protected


def arrange(buffers: list[forms.Buffer], start: int = 0) -> int:
    """`forms.arrange` without overlap, each buffer between pages of its own."""
    at, GUARDS[:] = start or GUARD, GUARDS if start else [0]
    for buffer in buffers:
        whole = -(-buffer.size // PAGE) * PAGE
        buffer.offset = at + (whole - buffer.size if AT_END else 0)
        at += whole + GUARD
        GUARDS.append(at - GUARD)
    return at


def arena(size: int) -> np.ndarray:
    """Memory as `arrange` wants it; any other buffer is of at least this size by chance, and guarded."""
    if not GUARDS or size != GUARDS[-1] + GUARD:
        return guarded(size)
    held = np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)
    for page in GUARDS:
        protect(held.ctypes.data + page)
    GUARDS.clear()
    return held


def guard() -> None:
    """From here on, all of the engine's memory is guarded."""
    memory.buffer, memory.aligned, build.arrange = arena, aligned, arrange
    dynamic.ROUND = 1
    empty = torch.empty
    # what DynamicConv2d gives: one more float than it needs, with ROUND = 1
    dynamic.torch = type("Torch", (), {**vars(torch), "empty": staticmethod(lambda n: tensor(n - 1))})
    assert empty is torch.empty
    step = forms.Forms.step

    def broken(self: forms.Forms, name: str, kind: str, text: str, arguments: list) -> None:
        if kind == BREAK and not any(s.kind == kind for s in self.steps):
            target = arguments[1]
            held, at = (target.buffer, target.offset) if isinstance(target, forms.At) else (target, 0)
            arguments = [arguments[0], forms.At(held, at + (held.size if AT_END else -held.size)), *arguments[2:]]
        step(self, name, kind, text, arguments)

    forms.Forms.step = broken


@cache
def guard_once() -> None:
    """`guard`, however often it is called."""
    guard()


def tensor(floats: int) -> Tensor:
    """Guarded floats."""
    return torch.from_numpy(guarded(4 * floats).view(np.float32))


def copied(x: Tensor) -> Tensor:
    """A tensor in guarded memory."""
    made = tensor(x.numel()).view(x.shape)
    return made.copy_(x)


def poison(network: engine.CompiledNetwork) -> None:
    """Every activation becomes what is not a number."""
    for buffer in {b for v in network.values.values() for b in v.forms.values()}:
        network.arena[buffer.offset : buffer.offset + buffer.size].view(np.float32)[:] = np.nan


class Residual(nn.Module):
    """As ResNets: a large window, a pool, sums, strides, bottlenecks, and a matrix."""

    sizes = ((1, 33, 41), (3, 32, 32), (17, 15, 18))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 10, 7, 2, 3, bias=False), nn.BatchNorm2d(10))
        self.a, self.b = nn.Conv2d(10, 6, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.c, self.short = nn.Conv2d(6, 18, 1), nn.Conv2d(10, 18, 1, 2)
        self.down, self.atrous = nn.Conv2d(18, 18, 3, 2, 1), nn.Conv2d(18, 18, 3, padding=2, dilation=2)
        self.same, self.many, self.few = nn.Conv2d(18, 18, 3, padding=1), nn.Linear(18, 70), nn.Linear(70, 9)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1)
        y = self.c(F.avg_pool2d(F.relu(self.b(F.relu(self.a(x)))), 3, 2, 1))
        x = F.relu(y + self.short(x))
        x = F.relu(self.same(x) + x)
        x = F.relu(self.atrous(self.down(x)))
        return self.few(F.relu(self.many(x.mean((2, 3)))))


class Mobile(nn.Module):
    """As MobileNets: windows of single channels, squeeze and excite, functions that are no bounds."""

    sizes = ((1, 28, 35), (3, 22, 22), (17, 13, 13))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.expand, self.each = (
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.Conv2d(8, 20, 1),
            nn.Conv2d(20, 20, 5, 1, 2, groups=20),
        )
        self.down = nn.Conv2d(20, 20, 3, 2, 1, groups=20)
        self.squeeze, self.excite, self.project = nn.Conv2d(20, 5, 1), nn.Conv2d(5, 20, 1), nn.Conv2d(20, 8, 1)
        self.norm, self.last = nn.BatchNorm2d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.stem(x))
        y = F.hardswish(self.each(F.silu(self.expand(x))))
        y = y * F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        x = x + self.project(y)
        y = F.gelu(self.down(F.relu6(self.expand(x))))
        return self.last(torch.sigmoid(self.norm(self.project(y))).mean((2, 3)))


class Dense(nn.Module):
    """As DenseNets: concatenations, norms without a layer before them, windows that end outside, all pixels read."""

    sizes = ((1, 19, 26), (3, 16, 16), (17, 12, 13))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.a, self.two, self.b = nn.Conv2d(6, 5, 3, padding=1), nn.BatchNorm2d(11), nn.Conv2d(11, 5, 3, padding=1)
        self.pointwise, self.last = nn.Conv2d(16, 7, 1), nn.Conv2d(7, 4, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.a(F.relu(self.one(x)))], 1)
        x = torch.cat([x, self.b(F.relu(self.two(x)))], 1)
        x = F.max_pool2d(F.avg_pool2d(self.pointwise(x), 2), 2, 2, ceil_mode=True)
        return self.last(x).flatten(1)


class Shuffle(nn.Module):
    """As ShuffleNets and U-Nets: channels in two halves and in another order, pads, pieces, larger pictures."""

    sizes = ((1, 17, 20), (3, 16, 16), (17, 9, 12))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.each = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.groups, self.last = nn.Conv2d(12, 12, 1, groups=3), nn.Conv2d(24, 5, 3, padding=(2, 0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = x.chunk(2, 1)
        x = torch.cat([a, self.each(b)], 1)
        n, c, h, w = x.shape
        x = self.groups(x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w))
        x = F.pad(x[:, :, 1::2, :-1], (2, 1, 0, 2))
        y = F.interpolate(x, scale_factor=2.0)
        return self.last(torch.cat([F.max_pool2d(y, 2, 1), F.avg_pool2d(y * y + y, 2, 1)], 1))


class Pixels(nn.Module):
    """Pictures of other sizes, windows that are counted, filters turned round, numbers a channel, features alone."""

    sizes = ((1, 17, 20), (3, 16, 16), (17, 9, 12))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up = nn.Conv2d(3, 6, 3, (2, 1), 1), nn.ConvTranspose2d(6, 5, 3, 2, 1, 1)
        self.a, self.norm, self.last = nn.Linear(5, 70), nn.BatchNorm1d(70), nn.Linear(70, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.stem(x), 0.2) * 0.5 + 0.1
        y = F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)
        x = F.interpolate(y, size=tuple(x.shape[2:]), mode="bilinear") - x
        x = F.pad(F.adaptive_avg_pool2d(F.elu(self.up(x)), (7, 5)), (2, 1, 1, 3), mode="reflect")
        x = torch.tanh(F.relu(self.a(x.mean((2, 3)))))
        return self.last(F.mish(self.norm(x)))


class Basis(nn.Module):
    """Filters in a basis."""

    sizes = ((1, 13, 10), (3, 12, 12))

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 48, 3, padding=1), nn.Conv2d(48, 64, 3, 1, 1), nn.Conv2d(64, 6, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x))
        return self.c(F.relu(self.b(y)))


BROKEN = ("mobile", "shuffle", "pixels", "basis")  # which together have every kind of step
NETWORKS: dict[str, type[nn.Module]] = {
    n.__name__.lower(): n for n in (Residual, Mobile, Dense, Shuffle, Pixels, Basis)
}


def zeroed(model: nn.Module, sparsity: float) -> nn.Module:
    """Weights and statistics that are all different, a part of them zero."""
    random = torch.Generator().manual_seed(0)
    if isinstance(model, Basis):
        interspace_(model)
        turned = torch.linalg.qr(torch.randn(9, 9, generator=random))[0]
        for _, module, leaf, basis in interspaced(model):
            basis.vectors.data = turned
            given = coefficients(module, leaf)
            given.data[torch.rand(given.shape, generator=random) < 0.5 + sparsity / 2] = 0
        return model.eval()
    for p in model.parameters():
        p.data.normal_(0, 1 / max(1, p[0].numel()) ** 0.5, generator=random)
        if p.dim() > 1:
            p.data[torch.rand(p.shape, generator=random) < sparsity] = 0
    for name, b in model.named_buffers():
        if name.endswith("running_var"):
            b.uniform_(0.5, 2, generator=random)
    return model.eval()


@dataclass
class Case:
    """A network as a graph, its input, and what torch makes of it."""

    graph: Graph
    x: Tensor
    want: Tensor
    threads: int
    kinds: list[str]


def cases(kind: str) -> list[Case]:
    """Sizes, sparsities and threads of a network."""
    found = []
    for n, *size in NETWORKS[kind].sizes:
        for sparsity, threads in ((0.0, 1), (0.9, 2)) if n == 1 else ((0.7, 1 + n % 2),):
            x = torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(n))
            model = zeroed(NETWORKS[kind](), sparsity)
            compiled = compile(model, x)
            with torch.no_grad():
                found.append(Case(compiled.graph, x, model.double()(x.double()), threads, [*compiled.report()]))
    return found


def run(case: Case) -> list[str]:
    """The engine gives what torch does, twice; the kinds of its steps."""
    images = next(iter(case.graph.nodes.values())).shape[0]
    network = engine.CompiledNetwork(case.graph, images=images, threads=case.threads)
    for _ in range(2):
        poison(network)
        error = float((network(case.x) - case.want).abs().max() / case.want.abs().max())
        assert error < 2e-5, f"{tuple(case.x.shape)}, {case.threads} threads: off by {error}"
    return [step.kind for step in network.steps]


def run_dynamic() -> set[str]:
    """Convolutions of some channels, of any geometry."""
    random = np.random.default_rng(0)
    for _ in range(25):
        groups = int(random.choice([1, 1, 2, 3]))
        c_in, c_out = (groups * int(n) for n in random.integers(1, 7, 2))
        kernel, padding = (tuple(map(int, random.integers(low, 5 - low, 2))) for low in (1, 0))
        conv = nn.Conv2d(c_in, c_out, kernel, int(random.integers(1, 4)), padding, groups=groups)
        n, *size = int(random.integers(1, 4)), *(map(int, random.integers(4, 40, 2)))
        x = copied(torch.randn(n, c_in, *size))
        run = DynamicConv2d(conv, x, threads=1 + n % 2)
        ins, outs = (torch.rand(n, c) < 0.6 for c in (c_in, c_out))
        got = run(x, ins, outs)
        want = conv.double()((x * ins[:, :, None, None]).double()) * outs[:, :, None, None]
        assert float((got - want).detach().abs().max()) < 1e-5
        run(x, ins[0], outs[0], compact=True)
    return {"dynamic"}


def fork(kind: str, where: str, what: str, work: Callable[[], set[str]]) -> None:
    """Does some work in a process of its own, and prints how it ended."""
    global AT_END, BREAK
    child = os.fork()
    if child == 0:
        AT_END, BREAK = where == "end", what
        guard()
        ended = 1
        try:
            print(kind, where, what, "well", *sorted(work()), flush=True)
            ended = 0
        except Exception:
            print(kind, where, what, traceback.format_exc(), file=sys.stderr, flush=True)
        finally:
            os._exit(ended)
    status = os.waitpid(child, 0)[1]
    if status:
        print(kind, where, what, "killed" if os.WIFSIGNALED(status) else "wrong", flush=True)


def all_of(cases: list[Case]) -> set[str]:
    """Runs them; the kinds of all their steps."""
    return {step for case in cases for step in run(case)}


def main() -> None:
    """All networks, and some with steps that write elsewhere."""
    torch.set_num_threads(1)
    for kind in NETWORKS:
        prepared = cases(kind)
        broken = sorted(prepared[0].kinds) if kind in BROKEN else []
        for where in ("end", "start"):
            fork(kind, where, "sound", partial(all_of, prepared))
            for what in broken:
                fork(kind, where, what, partial(all_of, prepared[:1]))
    for where in ("end", "start"):
        fork("dynamic", where, "sound", run_dynamic)


if __name__ == "__main__":
    main()
