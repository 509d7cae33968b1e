"""A graph run by torch alone: where the processor has no vectors that kernels are made for."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.core.errors import InputError
from prunus.core.forked import Lock
from prunus.runtime import fallback, gating, jit
from prunus.runtime.check import check
from prunus.runtime.engine import CompiledNetwork
from prunus.runtime.forms import Step
from prunus.runtime.graph import INFINITY, Graph, Node


def network_of(graph: Graph, *, images: int, threads: int) -> CompiledNetwork:
    """A graph as kernels, or with a warning as operators of torch where the processor has no vectors for them.

    Raises `InputError` where what it declares does not follow from it (`check`).
    """
    check(graph, images=images, lanes=jit.lanes())
    try:
        jit.machine()
    except InputError as error:
        warnings.warn(f"{error} Torch runs this one, and zeros save no time.", stacklevel=3)
        return PlainNetwork(graph, images=images, threads=threads)
    return CompiledNetwork(graph, images=images, threads=threads)


class PlainNetwork(CompiledNetwork):
    """A `CompiledNetwork` every step of which is torch's."""

    def __init__(self, graph: Graph, *, images: int, threads: int) -> None:
        nn.Module.__init__(self)
        self.graph, self.images, self.threads, self.lock = graph, images, threads, Lock()
        self.inputs, self.outputs, self.constants = graph.inputs(), graph.outputs, graph.constants()
        self.given, self.made = [None] * len(self.inputs), [None] * len(self.outputs)
        self.steps = [
            step(number, node, graph) for number, node in graph.nodes.items() if node.kind in {*KINDS, "torch"}
        ]
        self.segments = [*self.steps]
        self.values, self.kept, self.size = {}, [], 0
        self.weights = sum(t.numel() * t.element_size() for n in graph.nodes.values() for t in n.tensors.values())


def step(number: int, node: Node, graph: Graph) -> Step:
    """A node as a step of torch."""
    function = fallback.resolve(node) if node.kind == "torch" else KINDS[node.kind](node)
    low, high = node.numbers.get("low", -INFINITY), node.numbers.get("high", INFINITY)
    bounded = node.kind != "torch" and (low > -INFINITY or high < INFINITY)
    name, *given = node.numbers.get("function", "").split() or [""]
    applied = FUNCTIONS.get(name)

    mask, gate = node.numbers.get("mask", ""), node.numbers.get("out", -1)
    read = [i for i in node.inputs if node.kind == "mul" or graph.nodes[i].kind != "gate"]

    def run(objects: dict[int, Any], view: Any) -> None:
        made = function([objects[i] for i in read] + ([objects[gate]] if mask else []))
        made = applied(made, *map(float, given)) if applied else made.clamp(low, high) if bounded else made
        objects[number] = made * objects[gate][:, :, None, None] if mask == "after" else made

    return Step(node.name, "torch", run=run)


Operator = Callable[[Sequence[Tensor]], Tensor]


def _conv(node: Node) -> Operator:
    n, (weight, bias) = node.numbers, (node.tensors[k].float() for k in ("weight", "bias"))

    def run(x: Sequence[Tensor]) -> Tensor:
        ends = [  # pads may be uneven: after the picture come as many zeros as the output asks for
            (out - 1) * n["stride"] + (k - 1) * d + 1 - p - size
            for out, k, d, p, size in zip(node.shape[2:], weight.shape[2:], n["dilation"], n["padding"], x[0].shape[2:])
        ]
        padded = F.pad(x[0], (n["padding"][1], ends[1], n["padding"][0], ends[0]))
        made = F.conv2d(padded, weight, bias, n["stride"], 0, n["dilation"], n["groups"])
        made = made * x[-1][:, :, None, None] if n.get("mask") == "before" else made
        return made + x[1] if len(x) > 1 + bool(n.get("mask")) else made

    return run


def _linear(node: Node) -> Operator:
    weight, bias = (node.tensors[k].float() for k in ("weight", "bias"))
    return lambda x: F.linear(x[0].flatten(1), weight, bias).reshape(-1, *node.shape[1:])


def _pool(node: Node) -> Operator:
    n, (height, width) = node.numbers, node.shape[2:]
    most = n["of"] == "max"
    share = 1 / (n["kernel"][0] * n["kernel"][1])
    if "counts" in n:
        share = 1 / torch.outer(*(torch.tensor(c).float() for c in n["counts"]))

    def run(x: Sequence[Tensor]) -> Tensor:
        ends = [
            (out - 1) * n["stride"] + k - p - size
            for out, k, p, size in zip((height, width), n["kernel"], n["padding"], x[0].shape[2:])
        ]
        padded = F.pad(x[0], (n["padding"][1], ends[1], n["padding"][0], ends[0]), value=-INFINITY if most else 0.0)
        if most:
            return F.max_pool2d(padded, n["kernel"], n["stride"])
        return share * F.avg_pool2d(padded, n["kernel"], n["stride"], divisor_override=1)

    return run


def _resize(node: Node) -> Operator:
    matrices = []
    for name, size in zip(("rows", "columns"), node.shape[2:]):
        axis = node.numbers[name]
        matrix = torch.zeros(size, 1 + max(i for row in axis for i, _ in row))
        for to, row in enumerate(axis):
            for i, weight in row:
                matrix[to, int(i)] = weight
        matrices.append(matrix)
    down, across = matrices
    return lambda x: down @ x[0][:, :, : down.shape[1], : across.shape[1]] @ across.t()


def _rows(node: Node) -> Operator:
    scale, shift = (node.tensors[name].float() for name in ("scale", "shift"))
    return lambda x: x[0] * scale + shift


def _mean(x: Tensor, node: Node) -> Tensor:
    return (x.abs() if node.numbers.get("absolute") else x).mean((2, 3), keepdim=len(node.shape) == 4)


def _pick(node: Node) -> Operator:
    kept = [torch.tensor(k) for k in node.numbers["kept"]]

    def run(x: Sequence[Tensor]) -> Tensor:
        made = x[0]
        for axis, index in enumerate(kept, 1):
            shape = [-1 if i == axis else 1 for i in range(4)]
            made = made.index_select(axis, index.clamp(min=0)) * (index >= 0).to(made.dtype).reshape(shape)
        return made

    return run


KINDS: dict[str, Callable[[Node], Operator]] = {
    "conv": _conv,
    "linear": _linear,
    "pool": _pool,
    "pick": _pick,
    "resize": _resize,
    "rows": _rows,
    "add": lambda node: lambda x: x[0] + x[1],
    "mul": lambda node: lambda x: x[0] * x[1].reshape(*x[1].shape, *[1] * (x[0].dim() - x[1].dim())),
    "mean": lambda node: lambda x: _mean(x[0], node),
    "gate": lambda node: (
        lambda x: gating.decide(x[0], *(node.numbers[k] for k in ("rule", "number", "floor", "scales")))
    ),
    "flatten": lambda node: lambda x: x[0].reshape(len(x[0]), *node.shape[1:]),
    "cat": lambda node: lambda x: torch.cat(list(x), 1),
}
FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
    "elu": torch.ops.aten.elu.default,
    "mish": F.mish,
}
