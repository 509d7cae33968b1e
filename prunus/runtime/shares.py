"""Which gated convolutions are worth lists: by the share of channels that is on, and the model of the inner loop.

Lists cost the cycles of the dense kernel, or Winograd's, times the shares of inputs and outputs that are on; with all
channels on, that is what these kernels cost.  So a layer is faster whole, then masked, only where its weights have
zeros for the sparse kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.core.errors import InputError
from prunus.runtime import gated, jit
from prunus.runtime.choose import best
from prunus.runtime.forms import shape_of
from prunus.runtime.graph import Graph
from prunus.runtime.layout import Layout
from prunus.runtime.plain import step

SEEN = 16  # pictures, at most
ZEROS = 0.2  # of the weights, below which the sparse kernel is never faster


@torch.no_grad()
def shares_on(graph: Graph, pictures: Sequence[Sequence[Tensor]]) -> dict[int, float]:
    """The mean share of channels that every gate leaves on, by the gate's number, over some pictures."""
    on: dict[int, list[float]] = {n: [] for n, node in graph.nodes.items() if node.kind == "gate"}
    steps = [step(number, node, graph) for number, node in graph.nodes.items() if node.kind != "input"]
    for picture in pictures[:SEEN]:
        objects: dict[int, Any] = dict(zip(graph.inputs(), picture))
        for each in steps:
            assert each.run is not None
            each.run(objects, None)  # type: ignore[arg-type]
        for number, found in on.items():
            found.append(float(objects[number].count_nonzero()) / objects[number].numel())
    return {n: float(np.mean(found)) for n, found in on.items()}


def prefer_whole(graph: Graph, pictures: Sequence[Sequence[Tensor]]) -> None:
    """Marks convolutions as ``whole`` that are faster so than by lists, at the shares that are on for some pictures."""
    try:
        here = jit.machine()
    except InputError:
        return  # torch runs it
    cycles = {}
    for number, node in graph.nodes.items():
        if node.kind == "conv" and gated.by_lists(node) and (node.tensors["weight"] == 0).float().mean() > ZEROS:
            weight = node.tensors["weight"].detach().float().numpy()
            y = Layout.of(*node.shape[2:], lanes=here.lanes)
            options = best(weight, shape_of(node), y, here.registers)
            least, dense = options[0][0], next(c for c, choice in options if choice.by != "lists")
            if least < dense:
                cycles[number] = least, dense
    shares = shares_on(graph, pictures) if cycles else {}
    for number, (least, dense) in cycles.items():
        node = graph.nodes[number]
        ends = ("out",) if gated.depthwise(node) else ("out", "into")
        if least < dense * np.prod([shares.get(node.numbers.get(end, -1), 1.0) for end in ends]):
            node.numbers["whole"] = True
    gated.find_lists(graph)
