"""Graphs recorded at several batch sizes made into one for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from prunus.core import TraceError
from prunus.surgery.capture import Captured
from prunus.surgery.graph import Batch, Given, Graph, Step
from prunus.surgery.structure import Node


def merge(captured: Sequence[Captured], samples: Sequence[int]) -> Captured:
    """The graph in which every integer that differs is ``slope * n + offset`` in the number of samples.

    Raises: `TraceError` when the recordings differ in anything else, or in integers that lie on no line.
    """
    if len(captured) == 1:
        return captured[0]
    graphs = [c.graph for c in captured]
    names = [[step.op for step in graph.steps] for graph in graphs]
    if any(other != names[0] for other in names[1:]) or any(g.state != graphs[0].state for g in graphs):
        raise TraceError("forward calls other operators for other batch sizes.")
    for name, constant in captured[0].constants.items():
        if not all(equal(constant, c.constants[name]) for c in captured[1:]):
            raise TraceError("forward makes tensors of Python numbers that depend on the batch size.")
    steps = tuple(_step(steps, samples) for steps in zip(*(graph.steps for graph in graphs)))
    given = tuple(
        Given(g[0].number, tuple(_merged([list(one.shape) for one in g], samples, "an input")), g[0].dtype)
        for g in zip(*(graph.given for graph in graphs))
    )
    outputs = _merged([graph.outputs for graph in graphs], samples, "an output")
    return replace_graph(captured[0], Graph(graphs[0].inputs, given, graphs[0].state, steps, outputs))


def replace_graph(captured: Captured, graph: Graph) -> Captured:
    """The same recording with another graph."""
    return Captured(graph, captured.constants, captured.anchor, captured.order, captured.notes)


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are equal, NaN where the other is NaN.

    >>> equal(torch.tensor(float("nan")), torch.tensor(float("nan")))
    True
    """
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))


def _step(steps: Sequence[Step], samples: Sequence[int]) -> Step:
    first = steps[0]
    where = f"{first.op} in '{first.module}'" if first.module else first.op
    if any(step.outs != first.outs or step.kwargs.keys() != first.kwargs.keys() for step in steps):
        raise TraceError(f"{where} gives other tensors for other batch sizes.")
    args = _merged([list(step.args) for step in steps], samples, where)
    return replace(
        first,
        args=tuple(args),
        kwargs={k: _merged([step.kwargs[k] for step in steps], samples, where) for k in first.kwargs},
    )


def _merged(values: Sequence[Any], samples: Sequence[int], where: str) -> Any:
    """One argument for all batch sizes.

    >>> _merged([[4, 7], [6, 7], [10, 7]], (2, 3, 5), "here")
    [Batch(slope=2, offset=0), 7]
    """
    first = values[0]
    if isinstance(first, Node) and all(isinstance(v, Node) and len(v.items) == len(first.items) for v in values):
        items = [_merged(parts, samples, where) for parts in zip(*(v.items for v in values))]
        return Node(first.kind, first.keys, tuple(items), first.cls)
    if isinstance(first, (list, tuple)) and all(isinstance(v, type(first)) and len(v) == len(first) for v in values):
        return type(first)(_merged(parts, samples, where) for parts in zip(*values))
    if all(type(v) is type(first) and (v == first or v != v) for v in values):
        return first
    if all(type(v) is int for v in values):
        slope, left = divmod(values[1] - values[0], samples[1] - samples[0])
        line = Batch(slope, values[0] - slope * samples[0])
        if not left and all(line.at(n) == v for n, v in zip(samples, values)):
            return line
    raise TraceError(f"{where} depends on the batch size by {', '.join(map(str, values))} for {list(samples)} samples.")
