r"""Convolutions whose filters are sparse coefficients times a basis: the basis answers first, the coefficients mix.

.. math:: y_o = \sum_{i \in A} h^{(o,i)} * x_i + \sum_{i \in B} \sum_n \lambda^{(o,i)}_n \, (g^{(n)} * x_i),
    \qquad h^{(o,i)} = \sum_n \lambda^{(o,i)}_n g^{(n)}

Filters put together are dense where coefficients are sparse: channel i costs k multiply-adds (the kernel's positions)
for every output that reads it in A, and k for every vector used, and one for every coefficient, in B.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from prunus.runtime import jit
from prunus.runtime.choose import best
from prunus.runtime.forms import shape_of
from prunus.runtime.graph import Graph, Node
from prunus.runtime.layout import Layout
from prunus.runtime.pack import Shape

Factors = dict[Any, tuple[Tensor, Tensor]]  # of a constant: coefficients of its own shape, and the basis (m, m)
ROUNDING = 1e-4
ENDS = ("low", "high", "function")  # what is done to a sum before it is stored


def note_factors(item: fx.Node, known: dict[Any, Any], factors: Factors) -> None:
    """Remember that a constant is coefficients times a basis, through views of the product."""
    name = str(item.target).removeprefix("aten.").split(".")[0]
    first = item.args[0] if item.args and isinstance(item.args[0], fx.Node) else None
    if name in ("bmm", "matmul", "mm"):
        left, right = (known[a] for a in item.args[:2])
        matrix = right if right.dim() == 2 else right[0] if right.dim() == 3 and right.stride(0) == 0 else None
        if matrix is not None and matrix.shape[0] == matrix.shape[1]:
            factors[item] = (left, matrix)
    elif first in factors and known[item].numel() == known[first].numel():
        coefficients, basis = factors[first]
        target: Any = item.target
        factors[item] = (target(coefficients, *item.args[1:], **item.kwargs), basis)


def attach_factors(node: Node, coefficients: Tensor, basis: Tensor) -> None:
    """Keep coefficients and basis beside the weight of a convolution, if they make it and have zeros."""
    weight = node.tensors["weight"]
    positions = weight[0, 0].numel()
    if coefficients.shape != weight.shape or len(basis) != positions or positions == 1:
        return
    made = (coefficients.reshape(-1, positions) @ basis).reshape(weight.shape)
    if bool((made - weight).abs().max() <= ROUNDING * weight.abs().max()) and bool((coefficients == 0).any()):
        node.tensors |= {"coefficients": coefficients, "basis": basis}


def mix(graph: Graph, images: int) -> Graph:
    """The graph with convolutions run by the answers of their basis where that takes fewer cycles by `choose`."""
    for number, node in list(graph.nodes.items()):
        if "coefficients" not in node.tensors:
            continue
        weight, coefficients, basis = (node.tensors[k].detach().double() for k in ("weight", "coefficients", "basis"))
        del node.tensors["coefficients"], node.tensors["basis"]
        if node.numbers["groups"] == 1:
            _split(graph, number, weight, coefficients.flatten(2), basis, images)
    return graph


def _split(graph: Graph, number: int, weight: Tensor, coefficients: Tensor, basis: Tensor, images: int) -> None:
    """Put the nodes of the cheapest plan in the place of one; coefficients (C_out, C_in, m)."""
    node = graph.nodes[number]
    used = (coefficients != 0).any(0)  # (C_in, m)
    mixed = _cheaper(coefficients, used)
    pairs = (used & mixed[:, None]).nonzero()  # (R, 2): input channel, vector
    if not len(pairs):
        return
    channel, vector = pairs.unbind(1)
    answer = torch.zeros(len(pairs), *weight.shape[1:], dtype=weight.dtype)
    answer[torch.arange(len(pairs)), channel] = basis[vector].reshape(-1, *weight.shape[2:])
    mixing = coefficients[:, channel, vector][..., None, None]  # (C_out, R, 1, 1)
    rest = weight.clone()
    rest[:, mixed] = 0
    y = Layout.of(*node.shape[2:], lanes=jit.lanes(), images=images)
    shape = shape_of(node)
    split = _cycles(answer, shape, y) + _cycles(mixing, Shape(), y)
    split += _cycles(rest, shape, y) if bool(rest.any()) else 0.0
    if split >= _cycles(weight, shape, y):
        return
    geometry = {k: v for k, v in node.numbers.items() if k not in ENDS}
    plain = {"stride": 1, "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    bounds = {k: v for k, v in node.numbers.items() if k in ENDS}
    source, *residual = node.inputs
    size, free = node.shape[2:], max(graph.nodes) + 1
    before = {free: Node("conv", [source], (node.shape[0], len(pairs), *size), geometry, _tensors(answer), node.name)}
    if bool(rest.any()):
        before[free + 1] = Node("conv", [source, *residual], node.shape, geometry, _tensors(rest), node.name)
        residual = [free + 1]
    mixer = Node("conv", [free, *residual], node.shape, plain | bounds, _tensors(mixing), node.name)
    mixer.tensors["bias"] = node.tensors["bias"]
    order = list(graph.nodes.items())
    at = [n for n, _ in order].index(number)
    graph.nodes = dict([*order[:at], *before.items(), (number, mixer), *order[at + 1 :]])


def _cheaper(coefficients: Tensor, used: Tensor) -> Tensor:
    """Input channels ``(C_in,)`` that take fewer multiply-adds by the answers of the basis."""
    positions = coefficients.shape[2]
    together = positions * (coefficients != 0).any(2).sum(0)
    return (positions + 1) * used.sum(1) + (coefficients != 0).sum((0, 2)) < together


def _tensors(weight: Tensor) -> dict[str, Tensor]:
    return {"weight": weight, "bias": torch.zeros(len(weight))}


def _cycles(weight: Tensor, shape: Shape, y: Layout) -> float:
    registers = 16 if y.lanes == 8 else 32
    return best(np.asarray(weight), shape, y, registers)[0][0]
