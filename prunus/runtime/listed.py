"""From gates and gated convolutions to steps: a decision, the tables that follow from it, the kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from prunus.runtime import channels, gated, pack, patches, select, winograd
from prunus.runtime.choose import by_winograd, dense
from prunus.runtime.forms import ROW, Forms, Value, bounds_of, shape_of
from prunus.runtime.graph import Graph, Node
from prunus.runtime.layout import FLOAT, Layout

POINTERS = 8  # outputs together at most: each has a pointer to its weights, in a register
FETCHED = 4.0  # bytes of weights a cycle, from beyond the second cache
Three = tuple[Any, Any, Any]  # of input, output and residual


def decide(forms: Forms, number: int, value: Value) -> None:
    """A gate: its mask is the value's row, its lists lie beside it."""
    n, source = value.node.numbers, forms.rows(value.node.inputs[0])
    mask = value.forms[None, 0.0] = forms.buffer((value.row + ROW) * FLOAT)
    lists = forms.lists[number] = forms.table(select.size(value.channels))
    many = max(int(n["number"]), n["floor"]) if n["rule"] == "largest" else n["floor"]
    text = select.emit_select(forms.lanes, n["rule"], n["scales"])
    forms.step(value.node.name, "gate", text, [source, mask, lists, float(n["number"]), value.channels, many])


def shares(graph: Graph, node: Node) -> tuple[float, float]:
    """The shares of a convolution's outputs and inputs that gates leave on, as measured; half, where they were not."""
    numbers = (node.numbers.get(end, -1) for end in ("out", "into"))
    out, into = (graph.nodes[n].numbers.get("share", 0.5) if n >= 0 else 1.0 for n in numbers)
    return out, (out if gated.depthwise(node) else into)


def choose(
    weight: np.ndarray, shape: pack.Shape, y: Layout, registers: int, parts: tuple[float, float]
) -> list[tuple[float, pack.Choice]]:
    """The ways to run a layer by lists of such `parts` of its outputs and inputs, with cycles, the cheapest first."""
    c_out, c_in, *window = (max(1, round(n * part)) for n, part in zip(weight.shape, (*parts, 1.0, 1.0)))
    if shape.groups > 1:
        shape, c_in = replace(shape, groups=c_out), c_out
    found = dense((window[0], window[1]), shape, c_in, c_out, y, registers)
    transformed = by_winograd((c_out, c_in, *window), shape, y, registers)
    found += [pair for pair in transformed if pair[1].together <= POINTERS]

    def cycles(pair: tuple[float, pack.Choice]) -> float:
        # rows of weights that are off lie beside those that are on, and come along; Winograd's lie in groups
        places, rows = ((pair[1].rows + 2) ** 2, 1.0) if pair[1].by == "winograd" else (window[0] * window[1], parts[0])
        return pair[0] + rows * weight[:, :, 0, 0].size * places * FLOAT / FETCHED

    return sorted(found, key=cycles)


def convolve(forms: Forms, node: Node, at: Three, held: Three, choice: pack.Choice) -> None:
    """A convolution that makes the channels of a list, or reads them; `at` are layouts, `held` buffers.

    The tables of all channels are known, and proved; a step before the convolution gathers those of the lists.
    """
    shape, weight = shape_of(node), node.tensors["weight"].detach().float().numpy()
    (c_out, c_in), (bounds, function) = weight.shape[:2], bounds_of(node)
    x, y, residual = at
    own, off = gated.depthwise(node), "out" in node.numbers and not node.numbers.get("partial")
    c_in = c_in * shape.groups
    lists = [(np.arange(c_in), np.arange(c_out))]
    planes = x.plane, y.plane, residual.plane if residual is not None else 0
    full = channels.tables(weight.shape, shape.groups, lists, planes, together=choice.together)
    sizes = tuple(b.size if b is not None else None for b in held)
    mask = node.numbers.get("mask", "")
    factors = forms.values[node.numbers["out"]].forms[None, 0.0] if mask else 0
    if choice.by == "winograd":
        k = replace(patches.kernel(x, y, residual, choice), function=function, mask=mask, listed=True)
        starts, strips = patches.starts(x, y, residual, shape, k)
        patches.check_bounds(starts, k, (c_in, c_out), sizes)
        full, weight = patches.tables(full, weight.shape, k), patches.pack(weight, k)
        plane, products, share = patches.work(c_in, c_out, k)
        rest = [starts, strips, len(strips), *bounds, forms.buffer(forms.threads * share)]
        rest += [plane, products, share, weight[0].nbytes, factors, c_in, c_out]
        text = winograd.emit(k)
    else:
        strips = pack.strips(x, y, residual, choice, shape)
        kernel = channels.kernel(x, y, residual, choice, shape, weight.shape)
        kernel = replace(kernel, function=function, mask=mask)
        channels.check_bounds(full, strips, kernel, weight.nbytes, sizes)  # type: ignore[arg-type]
        rest, text = [strips, len(strips), *bounds, choice.channels, factors], channels.emit(kernel)
    nothing = full.outs.copy()
    nothing[:, 1:3] = 0, c_out * FLOAT  # no weights; the bias and the factor behind those of channels: zero
    bias = np.zeros(c_out + 1, dtype=np.float32)
    bias[:c_out] = node.tensors["bias"].detach().float().numpy()
    threads = forms.threads

    into, out = (forms.lists.get(node.numbers.get(name, -1)) for name in ("into", "out"))
    ins: Any = full.ins if into is None or own else forms.table(full.ins.nbytes)
    if own:
        outs: Any = np.concatenate([full.outs, nothing])
        empty = full.jobs.copy()
        empty[:, 1], empty[:, 2:4] = empty[:, 0], empty[:, 2:4] + c_out
        rows, others, jobs = full.jobs, empty, forms.table(2 * full.jobs.nbytes)
    else:
        outs = full.outs if out is None else forms.table(full.outs.nbytes)
        rows, others, jobs = full.outs, nothing, forms.table(2 * threads * channels.JOB.itemsize)
    segments = forms.table((threads + 1) * 4)
    gather = select.emit_tables(
        forms.lanes, into=into is not None and not own, out=out is not None, off=bool(off), depthwise=own
    )
    gathered = [into or 0, full.ins, ins, out or 0, rows, others, jobs if own else outs, jobs, segments]
    forms.step(node.name, "lists", gather, [*gathered, c_in, c_out, choice.together])
    source, target, other = held
    given = [source, target, other or 0, bias, weight, ins, outs, jobs, segments]
    forms.step(node.name, "listed", text, [*given, *rest])
