"""A gate's lists are as long as its layer has channels: kernels walk them without looking."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import prunus
from prunus.core.errors import InputError
from prunus.runtime import compile, jit
from prunus.runtime.check import check
from prunus.runtime.graph import Graph, Node

SAID = "is no gate of {} channels"


@pytest.fixture(scope="module")
def graph() -> Graph:
    """Three gated convolutions of different widths, one behind the other; what is behind reads their lists."""
    torch.manual_seed(0)
    body: list[nn.Module] = []
    for inputs, outputs in ((3, 12), (12, 8), (8, 6)):
        body += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    model = nn.Sequential(*body, nn.MaxPool2d(2), nn.Conv2d(6, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    x = torch.randn(1, 3, 9, 9)
    prunus.dynamic.dynamic_(model, x, "fbs")
    return compile(model, x).graph


def looked_at(graph: Graph) -> None:
    check(graph, images=1, lanes=jit.lanes())


def naming(graph: Graph) -> list[tuple[int, str]]:
    return [(i, name) for i, n in graph.nodes.items() for name in ("out", "into") if name in n.numbers]


def test_the_honest_network_names_gates_of_every_kind(graph: Graph) -> None:
    looked_at(graph)
    found = {(graph.nodes[i].kind, name) for i, name in naming(graph)}
    assert found >= {("conv", "out"), ("conv", "into"), ("pool", "into")}


def channels(graph: Graph, node: Node, name: str) -> int:
    return node.shape[1] if name == "out" else graph.nodes[node.inputs[0]].shape[1]


def test_a_gate_of_another_width_is_refused_wherever_it_is_named(graph: Graph) -> None:
    widths = {i: n.shape[1] for i, n in graph.nodes.items() if n.kind == "gate"}
    tried = 0
    for number, name in naming(graph):
        right = graph.nodes[number].numbers[name]
        for other in (i for i, width in widths.items() if width != widths[right] and i < number):
            wrong = copy.deepcopy(graph)
            node = wrong.nodes[number]
            node.numbers[name] = other
            node.inputs[:] = [node.inputs[0], *(other if i == right else i for i in node.inputs[1:])]
            with pytest.raises(InputError, match=SAID.format(channels(graph, node, name))):
                looked_at(wrong)
            tried += 1
    assert tried >= 3


@pytest.mark.parametrize("more", [1, -1, 4084])
def test_a_gate_that_declares_another_width_is_refused(graph: Graph, more: int) -> None:
    for number in [i for i, n in graph.nodes.items() if n.kind == "gate"]:
        wrong = copy.deepcopy(graph)
        wrong.nodes[number].shape = (1, wrong.nodes[number].shape[1] + more)
        with pytest.raises(InputError, match="declares shape"):
            looked_at(wrong)


def test_what_is_no_gate_and_what_is_not_read_are_refused(graph: Graph) -> None:
    number, name = next((i, name) for i, name in naming(graph) if name == "into")
    node = graph.nodes[number]
    before, gate = node.inputs[0], node.numbers[name]
    for value, inputs, said in ((before, [before, before], SAID), (gate, [before], "none of its")):
        wrong = copy.deepcopy(graph)
        wrong.nodes[number].numbers[name] = value
        wrong.nodes[number].inputs[:] = inputs
        with pytest.raises(InputError, match=said.format(channels(graph, node, name))):
            looked_at(wrong)
