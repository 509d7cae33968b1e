"""What a graph has to be before kernels are made of it: every shape, index and list follows from the nodes before.

A file declares what every node gives; nothing of it is believed.  Kernels form their addresses from shapes, windows,
lists and widths alone, so a graph that passes here, built by `build`, keeps every kernel inside its buffers: a
convolution by the proofs of `pack`, `channels` and `patches` on top, every other one by the rule of its kind, which
says why.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch

from prunus.core.errors import InputError
from prunus.runtime import gated
from prunus.runtime.graph import Graph, Node
from prunus.runtime.layout import FLOAT
from prunus.runtime.limits import BYTES, NODES
from prunus.runtime.rules import RULES, Checked, Wrong, is_function, need, whole
from prunus.runtime.structure import is_structure

ENDS = {"low", "high", "function"}
OF_GATES = {"out", "into", "mask", "partial", "whole"}
KNOWN: dict[str, set[str]] = {
    "input": {"plain", "dtype", "shared"},
    "constant": {"plain"},
    "conv": {"stride", "padding", "dilation", "groups", "choice", *ENDS, *OF_GATES},
    "linear": {"stride", "padding", "dilation", "groups", "choice", *ENDS},  # what it was before, if a convolution
    "rows": ENDS,
    "add": ENDS,
    "mul": ENDS,
    "pool": {"of", "kernel", "stride", "padding", "beyond", "counts", "into", "partial"},
    "mean": {"absolute", "into"},
    "flatten": set(),
    "gate": {"rule", "number", "floor", "scales", "share"},
    "pick": {"kept"},
    "resize": {"rows", "columns"},
    "cat": set(),
    "torch": {"operator", "args", "kwargs", "plain"},
}


def check(graph: Graph, *, images: int, lanes: int) -> None:
    """Raises `InputError`, which names the node, where a graph is none that can be run, or not within its memory."""
    found = Checked(graph, images, lanes)
    fits = 0 < images <= lanes and images & (images - 1) == 0
    if not fits or not 0 < len(graph.nodes) <= NODES or not graph.inputs():
        raise InputError(f"{images} samples at a time and {len(graph.nodes)} nodes are no network.")
    for number, node in graph.nodes.items():
        try:
            _common(found, number, node)
            RULES[node.kind](found, number, node)
            if number not in found.objects:
                found.objects[number] = torch.empty(node.shape, device="meta")
        except (Wrong, KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            said = error if isinstance(error, Wrong) else f"{type(error).__name__}: {error}"
            raise InputError(f"node {number} ({str(node.kind)[:40]}, '{str(node.name)[:80]}'): {said}.") from error
        found.before[number] = node
    if not graph.outputs or any(n not in graph.nodes for n in graph.outputs):
        raise InputError(f"the outputs {str(graph.outputs)[:80]} are none of the nodes.")
    if not is_structure(graph.structure, len(graph.outputs)) or not isinstance(graph.apart, bool):
        raise InputError("how the outputs are put together is not said.")
    if graph.apart and any(graph.nodes[n].shape[:1] != (images,) for n in graph.outputs):
        raise InputError(f"the outputs are not {images} samples.")
    _lists(graph)


def _common(c: Checked, number: Any, node: Node) -> None:
    whole(number)
    need(node.kind in KNOWN, "there is no such kind of node")
    need(isinstance(node.name, str) and isinstance(node.numbers, dict), "its name or numbers are none")
    need(set(node.numbers) <= KNOWN[node.kind], f"it has numbers that it cannot have: {sorted(node.numbers)}")
    need(isinstance(node.inputs, list), "its inputs are no list")
    for i in node.inputs:
        need(isinstance(i, int) and i in c.before, f"it reads {str(i)[:40]}, which is none of the nodes before it")
    need(isinstance(node.shape, tuple) and len(node.shape) <= 8, "its shape is none")
    for n in node.shape:
        whole(n, 1 if node.in_memory else 0)
    need(prod(node.shape) * FLOAT < BYTES, f"a value of shape {node.shape} is too large")
    if node.in_memory:
        need(len(node.shape) >= 2 and node.shape[0] == c.images, f"{node.shape} is no shape of {c.images} samples")
    if node.kind != "torch":
        wanted = {"conv": {"weight", "bias"}, "linear": {"weight", "bias"}, "rows": {"scale", "shift"}}
        wanted["constant"] = {"value"}
        need(set(node.tensors) == wanted.get(node.kind, set()), f"its tensors are {sorted(node.tensors)}")
    low, high = (node.numbers.get(end, 0.0) for end in ("low", "high"))
    need(all(type(v) in (int, float) and v == v for v in (low, high)), f"{low}, {high} are no bounds")
    need(("low" in node.numbers) == ("high" in node.numbers), "it has one bound")
    is_function(node.numbers.get("function", ""))


def _lists(graph: Graph) -> None:
    """Which lists of channels are read, and whether channels that are off are left unwritten, is found again."""
    if not gated.has_gates(graph):
        return

    def said() -> list[Any]:
        return [(n.inputs, n.numbers.get("into"), n.numbers.get("partial", False)) for n in graph.nodes.values()]

    for node in graph.nodes.values():
        if "into" in node.numbers and node.inputs[-1:] != [node.numbers["into"]]:
            raise InputError(f"'{node.name}' does not read the lists it names last.")
    before = [(list(inputs), *rest) for inputs, *rest in said()]
    gated.find_lists(graph)
    if before != [(list(inputs), *rest) for inputs, *rest in said()]:
        raise InputError("which channels are left out is not what follows from the gates.")
