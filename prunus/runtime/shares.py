"""Which gated convolutions are worth lists: by the share of channels that is on, and the model of the inner loop.

Lists cost the cycles of the dense kernel, or Winograd's, times the shares of inputs and outputs that are on; with all
channels on, that is what these kernels cost.  So a layer is faster whole, then masked, only where its weights have
zeros for the sparse kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from prunus.core.errors import InputError
from prunus.runtime import gated, jit, listed
from prunus.runtime.choose import best
from prunus.runtime.forms import shape_of
from prunus.runtime.graph import Graph
from prunus.runtime.layout import Layout
from prunus.runtime.plain import step

SEEN = 8  # pictures, at most
ZEROS = 0.2  # of the weights, below which the sparse kernel is never faster


@torch.no_grad()
def shares_on(graph: Graph, pictures: Sequence[Sequence[Tensor]]) -> dict[int, float]:
    """The mean share of channels that every gate leaves on, by the gate's number, over some pictures."""
    on: dict[int, list[float]] = {n: [] for n, node in graph.nodes.items() if node.kind == "gate"}
    constants = {n: graph.nodes[n].tensors["value"] for n in graph.constants()}
    steps = [
        step(number, node, graph) for number, node in graph.nodes.items() if node.kind not in ("input", "constant")
    ]
    for picture in pictures[:SEEN]:
        objects: dict[int, Any] = dict(zip(graph.inputs(), picture)) | constants
        for each in steps:
            assert each.run is not None
            each.run(objects, None)  # type: ignore[arg-type]
        for number, found in on.items():
            found.append(float(objects[number].count_nonzero()) / objects[number].numel())
    return {n: fmean(found) for n, found in on.items()}


def prefer_whole(graph: Graph, pictures: Sequence[Sequence[Tensor]]) -> None:
    """Marks convolutions as ``whole`` that are faster so than by lists, at the shares that are on for some pictures.

    The shares are noted in the gates: how a layer is best run by lists depends on them, too.
    """
    try:
        here = jit.machine()
    except InputError:
        return  # torch runs it
    for number, share in shares_on(graph, pictures).items():
        graph.nodes[number].numbers["share"] = share
    for node in graph.nodes.values():
        if node.kind == "conv" and gated.by_lists(node) and (node.tensors["weight"] == 0).float().mean() > ZEROS:
            weight = node.tensors["weight"].detach().float().numpy()
            given = weight, shape_of(node), Layout.of(*node.shape[2:], lanes=here.lanes), here.registers
            if best(*given)[0][0] < listed.choose(*given, listed.shares(graph, node))[0][0]:
                node.numbers["whole"] = True
    gated.find_lists(graph)
