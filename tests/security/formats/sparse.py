"""Compiled networks: a graph as JSON, and weights.  They are built and run with pages beside every buffer that nobody
may touch."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as tensors_of
from torch import Tensor, nn

import prunus
from prunus.runtime import compile, files, save
from prunus.runtime import load as load_network
from tests.runtime import guarded
from tests.security.fuzz import Format
from tests.security.mutate import dumped, mangled, mutated
from tests.security.tensorfile import parts, whole


class Tokens(nn.Module):
    """What torch runs: attention, a recurrent layer, norms, views, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.attend, self.norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)
        self.recurrent, self.last = nn.GRU(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x + self.attend(x, x, x, need_weights=False)[0] + torch.arange(8.0))
        y, _ = self.recurrent(x.flip(1))
        return self.last(torch.cat([y[:, 0], y[:, -1]], 1).view(-1, 2, 6).sum(1).softmax(1))


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """Networks that together have every kind of node and of kernel, and their examples."""
    found: dict[str, tuple[nn.Module, Tensor]] = {}
    for name, images, size, zeros in (
        ("residual", 1, (19, 23), 0.8),
        ("mobile", 3, (14, 14), 0.0),
        ("dense", 1, (12, 13), 0.5),
        ("shuffle", 1, (10, 12), 0.9),
        ("pixels", 2, (10, 12), 0.3),
    ):
        found[name] = guarded.zeroed(guarded.NETWORKS[name](), zeros), torch.randn(images, 3, *size)
    found["tokens"] = Tokens().eval(), torch.randn(1, 5, 8)
    return found


def gates() -> tuple[nn.Module, Tensor]:
    """A network with gates."""
    body = [nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3, padding=1)]
    rest = [nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)]
    model, x = nn.Sequential(*body, *rest).eval(), torch.randn(1, 3, 9, 9)
    prunus.dynamic.dynamic_(model, x, "fbs")
    return model, x


def write(folder: Path) -> list[Path]:
    out = []
    for name, (model, x) in {**networks(), "gates": gates()}.items():
        path = folder / f"{name}.sparse"
        if not path.exists():
            save(compile(model, x), path)
        out.append(path)
    return out


def signed(header: dict[str, Any], data: bytes) -> bytes:
    """With the checksum right, where one can be computed."""
    try:
        meta = header["__metadata__"]
        meta[files.DIGEST] = files._digest(meta[files.KEY], tensors_of(whole(header, data)))
    except Exception:  # no checksum fits what is no file any more
        pass
    return whole(header, data)


@cache
def texts() -> tuple[str, ...]:
    """Names of operators, kinds and functions."""
    names = torch._C._dispatch_get_all_op_names()
    aten = [name.removeprefix("aten::") for name in names if name.startswith("aten::")]
    return tuple(f"aten.{n}" if "." in n else f"aten.{n}.default" for n in sorted(aten)) + OWN * 100


OWN = ("conv", "linear", "add", "mul", "cat", "pick", "mean", "pool", "resize", "rows", "flatten", "gate", "torch")
OWN += ("input", "max", "silu", "leaky_relu 1e30", "elu 1 nan 2", "lists", "dense", "winograd", "before", "largest")


def change(rng: random.Random, source: Path) -> bytes:
    raw, kind = source.read_bytes(), rng.random()
    if kind < 0.06:
        return mangled(rng, raw)
    header, data = parts(raw)
    meta = header["__metadata__"]
    graph = json.loads(meta[files.KEY])
    if kind < 0.14:  # tensors of other shapes and types, exchanged, or the wrong ones
        return signed(mutated(rng, header), data)
    meta[files.KEY] = dumped(mutated(rng, graph, texts(), ("nodes",)))
    return signed(header, data)


def read(path: Path) -> Any:
    guarded.AT_END = path.stat().st_size % 2 == 0
    guarded.guard_once()
    return load_network(path, threads=1 + path.stat().st_size // 2 % 2)


def use(network: Any) -> None:
    for n in (1, 3):
        given = [network.graph.nodes[i] for i in network.inputs]
        xs = [torch.randn(n, *node.shape[1:]).to(getattr(torch, node.numbers["dtype"][6:])) for node in given]
        guarded.poison(network)
        network(*xs)


def edited(which: str, kind: str, edit: Callable[[Any], None], nth: int = 0) -> Callable[[list[Path]], bytes]:
    """A crafted file: an honest one in which the `nth` node of a kind is edited, or, without a kind, all nodes are.

    A node is [number, kind, inputs, shape, numbers, tensors, name].
    """

    def make(honest: list[Path]) -> bytes:
        header, data = parts(next(p for p in honest if p.stem == which).read_bytes())
        meta = header["__metadata__"]
        graph = json.loads(meta[files.KEY])
        edit([n for n in graph["nodes"] if n[1] == kind][nth] if kind else graph["nodes"])
        meta[files.KEY] = json.dumps(graph)
        return signed(header, data)

    return make


INPUTS, SHAPE, NUMBERS = 2, 3, 4


def at(place: int, index: Any, value: Any) -> Callable[[Any], None]:
    """An edit of a shape or a number."""

    def edit(node: Any) -> None:
        node[place][index] = value

    return edit


def of_pixel(number: int) -> Callable[[Any], None]:
    """Another pixel in a sum of pixels."""

    def edit(node: Any) -> None:
        node[NUMBERS]["rows"][0][0][0] = number

    return edit


def operator(name: str, *args: Any) -> Callable[[Any], None]:
    """Another operator of torch."""

    def edit(node: Any) -> None:
        node[NUMBERS] |= {"operator": name, "args": [{"node": 0}, *args], "kwargs": {}}

    return edit


def narrower(nodes: Any) -> None:
    """The last matrix reads what the one before it reads, which is shorter."""
    *_, one, last = (n for n in nodes if n[1] == "linear")
    last[INPUTS] = one[INPUTS]


def wider_gate(nodes: Any) -> None:
    """A convolution makes the channels of another one's gate, which are more than it has."""
    first, second = (n for n in nodes if n[1] == "conv" and "out" in n[NUMBERS])
    other = {second[NUMBERS]["out"]: first[NUMBERS]["out"]}
    second[NUMBERS] |= {"out": first[NUMBERS]["out"]}
    second[INPUTS] = [*{i: other.get(i, i) for i in second[INPUTS]}.values()]


def view(name: str, *rest: Any) -> Callable[[Any], None]:
    """A view of the same shape, whose strides lead far beyond its memory."""

    def edit(node: Any) -> None:
        shape = node[SHAPE]
        operator(name, shape, [1 << 24] * (len(shape) - 1) + [1], *rest)(node)

    return edit


CORPUS = {
    "a concatenation of fewer channels": edited("dense", "cat", at(SHAPE, 1, 4)),
    "a concatenation of more channels": edited("dense", "cat", at(SHAPE, 1, 128)),
    "a concatenation of other parts": edited("dense", "cat", lambda n: n[INPUTS].append(n[INPUTS][0])),
    "a linear layer of more outputs": edited("residual", "linear", at(SHAPE, 1, 4096)),
    "a mean of more channels": edited("residual", "mean", at(SHAPE, 1, 4096)),
    "a pool of more channels": edited("residual", "pool", at(SHAPE, 1, 640)),
    "a pool of another picture": edited("residual", "pool", at(SHAPE, 2, 4000)),
    "a pool with a window of a million": edited("residual", "pool", at(NUMBERS, "kernel", [1000, 1000])),
    "a pool that begins far outside": edited("residual", "pool", at(NUMBERS, "padding", [400, 400])),
    "a sum of more pixels": edited("shuffle", "add", at(SHAPE, 3, 400)),
    "a sum of other values": edited("shuffle", "add", lambda n: n[INPUTS].pop()),
    "rows of more features": edited("pixels", "rows", at(SHAPE, 1, 4096)),
    "a larger picture than was asked": edited("pixels", "resize", at(SHAPE, 2, 400)),
    "pixels of beyond the picture": edited("pixels", "resize", of_pixel(4000)),
    "pixels of before the picture": edited("pixels", "resize", of_pixel(-4000)),
    "a channel that is not there": edited("shuffle", "pick", lambda n: n[NUMBERS]["kept"][0].__setitem__(0, 4096)),
    "a row that is not there": edited("shuffle", "pick", lambda n: n[NUMBERS]["kept"][1].__setitem__(0, 4096), 1),
    "a flat value that is longer": edited("dense", "flatten", at(SHAPE, 1, 40000)),
    "a gate wider than its layer": edited("gates", "gate", at(SHAPE, 1, 4096)),
    "a gate narrower than its layer": edited("gates", "gate", at(SHAPE, 1, 2)),
    "lists that no gate makes": edited("gates", "conv", at(NUMBERS, "into", 0), 1),
    "a convolution of more channels": edited("residual", "conv", at(SHAPE, 1, 4096)),
    "a convolution of other groups": edited("residual", "conv", at(NUMBERS, "groups", 3)),
    "padding without end": edited("residual", "conv", at(NUMBERS, "padding", [100000, 100000])),
    "padding that takes gigabytes": edited("residual", "conv", at(NUMBERS, "padding", [3000, 3000])),
    "a window spread over the world": edited("residual", "conv", at(NUMBERS, "dilation", [2**30, 2**30])),
    "no stride": edited("residual", "conv", at(NUMBERS, "stride", 0)),
    "a kernel without end": edited("residual", "conv", at(NUMBERS, "choice", [8, 30, 1, 4096, 4096, "lists"])),
    "no channels at a time": edited("residual", "conv", at(NUMBERS, "choice", [1, 1, 0, 1, 1, "dense"])),
    "patches that are not there": edited("residual", "conv", at(NUMBERS, "choice", [4, 8, 1, 1, 1, "winograd"]), 2),
    "a matrix wider than what it reads": edited("residual", "", narrower),
    "another layer's gate": edited("gates", "", wider_gate),
    "a view of beyond": edited("tokens", "torch", view("aten._reshape_alias.default")),
    "a view of beyond by strides": edited("tokens", "torch", view("aten.as_strided.default", 1 << 24)),
    "a function in place": edited("tokens", "torch", lambda n: n[NUMBERS].update(operator="aten.relu_.default")),
    "an operator that trusts what it is given": edited(
        "tokens", "torch", operator("aten._convert_indices_from_coo_to_csr.default", 2**40)
    ),
    "zeros that fill the memory": edited("tokens", "torch", operator("aten.repeat.default", [2**20, 2**10, 2**10])),
}
FORMAT = Format("sparse", write, change, read, CORPUS, use=use, need=lambda size: 64 * size)
