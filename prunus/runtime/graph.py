"""What a network computes, as data: a list of nodes, constants folded and chains fused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prunus.runtime.limits import BEYOND
from prunus.runtime.structure import ONE, Structure

INFINITY = float("inf")


class Ref(int):
    """The number of a node, where it stands among numbers of other meanings."""


@dataclass
class Node:
    """One operation: its kind, the nodes it reads, numbers (JSON), weights, and the shape of what it gives.

    Kinds: ``input``, ``conv`` (stride, padding, dilation, groups, low, high, function; a second input is added before
    these), ``linear``, ``rows`` (scale and shift of features), ``add``, ``mul``, ``pool`` (max or mean), ``mean``,
    ``flatten``, ``gate`` (`gated`), ``pick`` (channels and pixels by index), ``resize`` (pixels as sums of others),
    ``cat``, ``constant`` (that the network gives as it is), and ``torch`` for everything else: an ATen operator by its
    name, with its arguments.
    """

    kind: str
    inputs: list[int]
    shape: tuple[int, ...]
    numbers: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    name: str = ""

    @property
    def low(self) -> float:
        """The lower bound of what it gives."""
        return self.numbers.get("low", -INFINITY)

    @property
    def in_memory(self) -> bool:
        """Whether it lies in the engine's memory, as samples of float32; else it is an object of torch's."""
        return self.kind not in ("input", "torch", "constant") or self.numbers["plain"] is True


@dataclass
class Graph:
    """Nodes by number, in order of execution, and the numbers of what the network gives."""

    nodes: dict[int, Node]
    outputs: list[int]
    structure: Structure = field(default_factory=lambda: dict(ONE))  # how they are put together
    apart: bool = True  # whether samples know nothing of each other, so that a batch may be run in pieces
    counted: bool = False  # whether forward computed with numbers of its own, which may be of the batch; not in files

    def inputs(self) -> list[int]:
        """The numbers of what the network is given."""
        return [number for number, node in self.nodes.items() if node.kind == "input"]

    def constants(self) -> list[int]:
        """The numbers of what is given as it is."""
        return [number for number, node in self.nodes.items() if node.kind == "constant"]

    def users(self) -> dict[int, list[int]]:
        """The nodes that read each node; an output of the network is read by -1."""
        found: dict[int, list[int]] = {number: [] for number in self.nodes}
        for number, node in self.nodes.items():
            for source in node.inputs:
                found[source].append(number)
        for number in self.outputs:
            found[number].append(-1)
        return found


def fuse(graph: Graph) -> Graph:
    """Folds scale and shift into the convolution before, then bounds and sums into what makes them; drops the unread.

    A sum goes into a convolution that nothing else reads, and takes its place in the order: all it reads is there.
    """
    from prunus.runtime.gated import find_lists, fuse_masks  # which reads this file

    steps = [_fuse_pads, _shuffles, _fold_affine, _fuse_bounds, fuse_masks, _fuse_sums, _fuse_bounds, _lone_bounds]
    for step in (*steps, _points):
        step(graph)
    users = graph.users()
    for number in reversed(list(graph.nodes)):
        if not users[number] and graph.nodes[number].kind != "input":
            node = graph.nodes.pop(number)
            for source in node.inputs:
                users[source].remove(number)
    find_lists(graph)
    return graph


def _replace(graph: Graph, old: int, new: int) -> None:
    for node in graph.nodes.values():
        node.inputs = [new if i == old else i for i in node.inputs]
    graph.outputs = [new if i == old else i for i in graph.outputs]


def _absorb(graph: Graph, number: int) -> None:
    """Puts the first input of a node in its place."""
    source = graph.nodes[number].inputs[0]
    made = graph.nodes[source]
    made.name = made.name or graph.nodes[number].name
    _replace(graph, number, source)
    del graph.nodes[number]


def _shuffles(graph: Graph) -> None:
    """Channels that are split in two axes, which change places, and are joined again, are picked in another order."""
    users = graph.users()

    def by_torch(number: int, *names: str) -> Node | None:
        node = graph.nodes[number]
        called = node.numbers["operator"].split(".")[1:2] if node.kind == "torch" else []
        able = node.inputs and called in [[name] for name in names]
        return node if able else None

    views = ("view", "reshape", "_unsafe_view")
    for number in list(graph.nodes):
        if not (join := by_torch(number, *views)) or not (turn := by_torch(join.inputs[0], "transpose", "permute")):
            continue
        if not (split := by_torch(turn.inputs[0], *views)) or len(split.shape) != 5:
            continue
        x, inner = graph.nodes[split.inputs[0]], (join.inputs[0], turn.inputs[0])
        turned = (split.shape[0], *split.shape[2:0:-1], *split.shape[3:])
        order = turn.numbers["args"][1:] in ([1, 2], [2, 1], [[0, 2, 1, 3, 4]])
        if order and x.in_memory and turn.shape == turned and x.shape == join.shape and split.shape[3:] == x.shape[2:]:
            channels = torch.arange(x.shape[1]).view(split.shape[1], -1).t().reshape(-1).tolist()
            kept = [channels, *(list(range(n)) for n in x.shape[2:])]
            graph.nodes[number] = Node("pick", [split.inputs[0]], join.shape, {"kept": kept}, {}, "channel_shuffle")
            if all(len(users[i]) == 1 for i in inner):
                for i in inner:
                    del graph.nodes[i]


def _points(graph: Graph) -> None:
    """A convolution of single pixels is a product with a matrix."""
    for node in graph.nodes.values():
        if node.kind == "conv" and node.numbers["groups"] == 1 and len(node.inputs) == 1:
            x, weight = graph.nodes[node.inputs[0]], node.tensors["weight"]
            if x.shape[2:] == node.shape[2:] == (1, 1) == weight.shape[2:] and node.numbers["padding"] == [0, 0]:
                node.kind, node.tensors["weight"] = "linear", weight.flatten(1)


def _fold_affine(graph: Graph) -> None:
    for number, node in list(graph.nodes.items()):
        if node.kind != "affine":
            continue
        before = graph.nodes[node.inputs[0]]
        scale, shift = node.tensors["scale"], node.tensors["shift"]
        plain = before.kind in ("conv", "linear") and "low" not in before.numbers and len(before.inputs) == 1
        if plain and len(graph.users()[node.inputs[0]]) == 1:
            for name in before.tensors.keys() & {"weight", "coefficients"}:
                before.tensors[name] = before.tensors[name].double() * scale.reshape(
                    -1, *[1] * (before.tensors[name].dim() - 1)
                )
            before.tensors["bias"] = before.tensors["bias"].double() * scale + shift
            _absorb(graph, number)
            continue
        if len(node.shape) == 2:
            node.kind = "rows"
            continue
        node.kind, channels = "conv", len(scale)
        node.numbers |= {"stride": 1, "padding": [0, 0], "dilation": [1, 1], "groups": channels}
        node.tensors = {"weight": scale.reshape(-1, 1, 1, 1), "bias": shift}


def _fuse_pads(graph: Graph) -> None:
    """Zeros around a picture that only convolutions read are their padding; after it as many as the output asks for."""
    users = graph.users()
    for number, node in list(graph.nodes.items()):
        readers = users[number]
        if node.kind != "pick" or any(n < 0 or graph.nodes[n].kind != "conv" for n in readers):
            continue
        channels, *before = graph.nodes[node.inputs[0]].shape[1:]
        kept, (rows, columns) = node.numbers["kept"][0], node.numbers["kept"][1:]
        first = [k.index(0) if 0 in k else -1 for k in (rows, columns)]
        whole = [
            k == [-1] * f + list(range(n)) + [-1] * (len(k) - f - n) for k, f, n in zip((rows, columns), first, before)
        ]
        after = [len(k) - f - n for k, f, n in zip((rows, columns), first, before)]
        few = max(*first, *after) <= BEYOND // 2
        if kept == list(range(channels)) and all(whole) and min(first) >= 0 and few:
            for reader in (graph.nodes[n] for n in readers):
                reader.inputs = [node.inputs[0] if i == number else i for i in reader.inputs]
                reader.numbers["padding"] = [p + f for p, f in zip(reader.numbers["padding"], first)]


def _fuse_bounds(graph: Graph) -> None:
    for number, node in list(graph.nodes.items()):
        if node.kind != "bounds":
            continue
        source = node.inputs[0]
        before = graph.nodes[source]
        able = before.kind in ("conv", "linear", "rows", "add", "mul") and before.numbers.get("mask") != "after"
        if "low" in before.numbers:  # bounds of what has bounds
            able = able and not (before.numbers.get("function") or node.numbers.get("function"))
            within = {end: min(max(before.numbers[end], node.low), node.numbers["high"]) for end in ("low", "high")}
        else:
            within = node.numbers
        if able and len(graph.users()[source]) == 1:
            before.numbers |= within
            _absorb(graph, number)


def _fuse_sums(graph: Graph) -> None:
    for number, node in list(graph.nodes.items()):
        if node.kind != "add" or node.inputs[0] == node.inputs[1]:
            continue
        order = list(graph.nodes)
        users = graph.users()
        able = [
            i
            for i in node.inputs
            if graph.nodes[i].kind == "conv"
            and len(graph.nodes[i].inputs) == 1 + ("out" in graph.nodes[i].numbers)
            and "low" not in graph.nodes[i].numbers
            and users[i] == [number]
            and graph.nodes[i].shape == node.shape == graph.nodes[_other(node.inputs, i)].shape
        ]
        if not able:
            continue
        chosen = max(able, key=order.index)
        other = _other(node.inputs, chosen)
        made = graph.nodes.pop(chosen)
        made.inputs.insert(1, other)
        made.numbers |= node.numbers
        graph.nodes[number] = made  # in the place of the sum


def _other(pair: list[int], one: int) -> int:
    return pair[1] if pair[0] == one else pair[0]


def _lone_bounds(graph: Graph) -> None:
    """Bounds that nothing took in become a product with one, which has bounds: a convolution, or of rows."""
    for node in graph.nodes.values():
        if node.kind == "bounds":
            if len(node.shape) == 2:
                node.kind = "rows"
                node.tensors = {"scale": torch.ones(node.shape[1]), "shift": torch.zeros(node.shape[1])}
                continue
            if len(node.shape) != 4:
                node.kind = "torch"
                node.numbers = {"operator": "aten.clamp.default", "plain": True, **_clamp_arguments(node.numbers)}
                continue
            channels = node.shape[1]
            node.kind = "conv"
            node.numbers |= {"stride": 1, "padding": [0, 0], "dilation": [1, 1], "groups": channels}
            node.tensors = {"weight": torch.ones(channels, 1, 1, 1), "bias": torch.zeros(channels)}


def _clamp_arguments(numbers: dict[str, Any]) -> dict[str, Any]:
    low, high = numbers["low"], numbers["high"]
    bounds = [None if abs(b) == INFINITY else b for b in (low, high)]
    return {"args": [{"node": 0}, *bounds], "kwargs": {}}
