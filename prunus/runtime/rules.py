"""What every kind of node has to be: its shape, indices and widths follow from the nodes that it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.runtime import fallback, gated
from prunus.runtime.activations import FUNCTIONS
from prunus.runtime.forms import shape_of
from prunus.runtime.graph import Graph, Node
from prunus.runtime.layout import Layout
from prunus.runtime.limits import BEYOND, COUNT, LEAST, MIXED, ROOM, TAPS, TIMES

RULES_OF_GATES = ("reaches", "positive", "largest")
TAKES = {"leaky_relu": 1, "elu": 3}  # numbers behind a function's name


class Wrong(Exception):
    """Why a node cannot be what it says."""


def need(fits: bool, why: str) -> None:
    """Raises `Wrong` unless it fits."""
    if not fits:
        raise Wrong(why)


def whole(value: Any, least: int = 0, most: int = COUNT) -> int:
    """A whole number between two bounds, both allowed; no truth value."""
    number = isinstance(value, int) and not isinstance(value, bool)
    need(number and least <= value <= most, f"{str(value)[:40]} is no whole number from {least} to {most}")
    return int(value)


def real(value: Any) -> float:
    """A finite number."""
    need(
        type(value) in (int, float) and abs(value) < COUNT**2 and isfinite(value),
        f"{str(value)[:40]} is no finite number",
    )
    return float(value)


def wholes(values: Any, many: int, least: int = 0, most: int = COUNT) -> list[int]:
    """So many whole numbers."""
    need(isinstance(values, (list, tuple)) and len(values) == many, f"{str(values)[:40]} are not {many} numbers")
    return [whole(v, least, most) for v in values]


class Checked:
    """A graph as far as it was looked at: the nodes before the one that is looked at now."""

    def __init__(self, graph: Graph, images: int, lanes: int) -> None:
        self.graph, self.images, self.lanes = graph, images, lanes
        self.before: dict[int, Node] = {}
        self.objects: dict[int, Any] = {}  # what nodes give, without memory, as torch's operators see it
        held = sum(t.numel() * t.element_size() for n in graph.nodes.values() for t in n.tensors.values())
        self.most = max(LEAST, TIMES * (held + sum(8 * prod(graph.nodes[n].shape) for n in graph.inputs())))

    def given(self, node: Node, many: int | None = None, dims: int | None = 4) -> list[Node]:
        """The nodes that a kernel reads, without gates' lists: each a value in samples."""
        read = [self.before[i] for i in node.inputs]
        need(many is None or len(read) == many, f"it reads {len(read)} values, not {many}")
        for one in read:
            need(one.in_memory, f"it reads '{one.name}', which is no picture and no row of numbers")
            need(dims is None or one.kind == "gate" or len(one.shape) == dims, f"'{one.name}' has shape {one.shape}")
        return read

    def gate(self, node: Node, name: str, channels: int) -> int | None:
        """The number of a gate that a node names, which has to be one of its inputs and of as many channels."""
        if name not in node.numbers:
            return None
        number = whole(node.numbers[name])
        need(number in node.inputs[1:] and number in self.before, f"its {name}, {number}, is none of its inputs")
        of = self.before[number]
        need(of.kind == "gate" and of.shape == (1, channels), f"its {name} is no gate of {channels} channels")
        return number


def is_function(text: Any) -> None:
    need(isinstance(text, str) and len(text) < 200, "its function is none")
    name, *numbers = text.split() or [""]
    need(not text or name in FUNCTIONS, f"there is no function '{name[:40]}'")
    need(len(numbers) == TAKES.get(name, 0) and all(isfinite(float(n)) for n in numbers), f"'{text}' has other numbers")


def _tensor(node: Node, name: str, shape: Sequence[int]) -> None:
    tensor = node.tensors[name]
    plain = tensor.dtype in (torch.float32, torch.float64) and tensor.layout == torch.strided
    need(plain and tensor.device.type == "cpu", f"its {name} is of {tensor.dtype} ({tensor.layout}, {tensor.device})")
    need(tuple(tensor.shape) == tuple(shape), f"its {name} has shape {tuple(tensor.shape)}, not {tuple(shape)}")


def _as(node: Node, shape: Sequence[int]) -> None:
    need(node.shape == tuple(shape), f"it declares shape {node.shape}; what it reads gives {tuple(shape)}")


def _input(c: Checked, number: int, node: Node) -> None:
    dtype = getattr(torch, str(node.numbers["dtype"]).removeprefix("torch."), None)
    need(isinstance(dtype, torch.dtype), f"there is no type '{str(node.numbers['dtype'])[:40]}'")
    plain = whole_truth(node.numbers["plain"])
    shared = whole_truth(node.numbers.get("shared", False))
    need(not node.inputs and not (plain and (shared or dtype != torch.float32)), "it is no input")
    sized = shared or not c.graph.apart or node.shape[:1] == (c.images,)
    need(sized, f"it has {node.shape[:1]} samples, not {c.images}")
    c.objects[number] = torch.empty(node.shape, dtype=dtype, device="meta")


def whole_truth(value: Any) -> bool:
    """A truth value, and no number in its place."""
    need(isinstance(value, bool), f"{str(value)[:40]} is no truth value")
    return bool(value)


def _constant(c: Checked, number: int, node: Node) -> None:
    value = node.tensors["value"]
    need(not node.inputs and node.numbers["plain"] is False and tuple(value.shape) == node.shape, "it is no constant")
    c.objects[number] = value.to("meta")


def _window(c: Checked, node: Node, x: Node, window: Sequence[int]) -> None:
    """Windows that reach beyond a picture reach zeros of its halo, which `pack.Shape.halo` makes wide enough.

    What a file declares is how many windows there are, which may be fewer than fit; padding, and so
    the halo, is bounded.
    """
    numbers = node.numbers
    whole(numbers["stride"], 1), wholes(numbers["padding"], 2), wholes(numbers.get("dilation", [1, 1]), 2, 1)
    shape = shape_of(node)
    for out, size, k, d, p in zip(node.shape[2:], x.shape[2:], window, shape.dilation, shape.padding):
        reach = d * (k - 1)
        need(p <= reach + BEYOND, f"{p} zeros before a picture are more than its windows reach")
        most = (size + 2 * p + 2 * reach + BEYOND) // shape.stride + 1
        need(out <= most, f"{out} windows of {k} pixels do not lie in {size}")
    y = Layout.of(*node.shape[2:], lanes=c.lanes, images=c.images)
    held = y.before(shape.stride, *x.shape[2:]).with_halo(shape.halo((window[0], window[1])))
    pixels = c.images * max(prod(x.shape[2:]), prod(node.shape[2:]))
    need(held.vectors * held.lanes <= 4 * pixels + ROOM, f"windows of {tuple(window)} need {held.halo} zeros around")


def _conv(c: Checked, number: int, node: Node) -> None:
    n, weight = node.numbers, node.tensors["weight"]
    x, *rest = c.given(node)
    need(weight.dim() == 4 and len(node.shape) == 4 and weight.numel() > 0, "its weight or shape has not four axes")
    c_out, c_in, *window = weight.shape
    groups = whole(n["groups"], 1)
    need(c_out % groups == 0 and x.shape[1] == c_in * groups, f"its weights read {c_in * groups} of {x.shape[1]}")
    _tensor(node, "weight", weight.shape)
    _tensor(node, "bias", (c_out,))
    _window(c, node, x, window)
    _as(node, (c.images, c_out, *node.shape[2:]))
    gates = [i for i, r in zip(node.inputs[1:], rest) if r.kind == "gate"]
    need(len(rest) - len(gates) <= 1 and x.kind != "gate", "it adds more than one value")
    if len(rest) > len(gates):  # what is added comes first, and is as large
        need(rest[0].kind != "gate" and rest[0].shape == node.shape, f"it adds {rest[0].shape} to {node.shape}")
    named = {c.gate(node, "out", c_out), c.gate(node, "into", x.shape[1])} - {None}
    need(named == set(gates), "it reads gates that it does not name")
    need(n.get("mask", "") in ("", "before", "after") and ("mask" in n) == ("out" in n), "its mask is none")
    for name in ("partial", "whole"):
        whole_truth(n.get(name, False))
    if gated.by_lists(node):
        need(groups == 1 or (groups == c_out and c_in == 1), "no lists of channels can be made for its groups")
    if "choice" in n:
        choice = n["choice"]
        need(isinstance(choice, list) and len(choice) == 6 and isinstance(choice[5], str), "its choice is none")
        wholes(choice[:5], 5, 1)


def _linear(c: Checked, number: int, node: Node) -> None:
    (x,) = c.given(node, 1, None)
    outputs = prod(node.shape[1:])
    _tensor(node, "weight", (outputs, prod(x.shape[1:])))  # a row of x is as long, and filled up
    _tensor(node, "bias", (outputs,))
    _as(node, (c.images, outputs, *[1] * (len(node.shape) - 2)))


def _rows(c: Checked, number: int, node: Node) -> None:
    (x,) = c.given(node, 1, 2)
    _as(node, x.shape)
    for name in ("scale", "shift"):
        _tensor(node, name, (node.shape[1],))


def _pair(c: Checked, number: int, node: Node) -> None:
    a, b = c.given(node, 2, None)
    need(len(a.shape) == 4 and a.kind != "gate", f"its first value has shape {a.shape}")
    _as(node, a.shape)
    channels = (c.images, node.shape[1])
    fits = b.shape == channels if b.kind == "gate" else b.shape in (node.shape, (*channels, 1, 1))
    need(fits, f"it joins {a.shape} with {b.shape}")


def _pool(c: Checked, number: int, node: Node) -> None:
    n = node.numbers
    x, *gate = c.given(node)
    window = wholes(n["kernel"], 2, 1)
    need(n["of"] in ("max", "mean") and prod(window) <= TAPS, f"there is no pool of {window} pixels")
    whole_truth(n.get("beyond", False)), whole_truth(n.get("partial", False))
    _window(c, node, x, window)
    _as(node, (c.images, x.shape[1], *node.shape[2:]))
    named = c.gate(node, "into", x.shape[1])
    need(len(gate) == (named is not None) and n.get("partial", False) <= (named is not None), "its lists are none")
    if "counts" in n:
        for axis, size in zip(n["counts"], node.shape[2:], strict=True):
            need(len(axis) == size and 0 not in wholes(axis, size, -COUNT), "its windows are counted wrongly")


def _mean(c: Checked, number: int, node: Node) -> None:
    x, *gate = c.given(node)
    need(node.shape in ((c.images, x.shape[1]), (c.images, x.shape[1], 1, 1)), f"{node.shape} is no mean of {x.shape}")
    need(len(gate) == (c.gate(node, "into", x.shape[1]) is not None) and x.kind != "gate", "its lists are none")
    whole_truth(node.numbers.get("absolute", False))


def _flatten(c: Checked, number: int, node: Node) -> None:
    (x,) = c.given(node, 1, None)
    need(prod(node.shape[1:]) == prod(x.shape[1:]), f"{node.shape} holds other numbers than {x.shape}")


def _gate(c: Checked, number: int, node: Node) -> None:
    n, (x,) = node.numbers, c.given(node, 1, 2)
    need(c.images == 1, "gates decide for one sample at a time")
    _as(node, x.shape)
    need(n["rule"] in RULES_OF_GATES and abs(real(n["number"])) < COUNT, "there is no such rule")
    whole(n["floor"], 0, node.shape[1])
    whole_truth(n["scales"])
    need(0 <= real(n.get("share", 0.5)) <= 1, "its share is none")


def _pick(c: Checked, number: int, node: Node) -> None:
    (x,) = c.given(node, 1)
    need(x.kind != "gate" and len(node.numbers["kept"]) == 3, "it picks along other axes than three")
    for kept, size in zip(node.numbers["kept"], x.shape[1:]):
        index = np.asarray(kept)
        need(isinstance(kept, list) and index.ndim == 1 and index.size > 0 and index.dtype.kind == "i", "no indices")
        need(index.min() >= -1 and index.max() < size, f"it picks {index.min()} to {index.max()} of {size}")
    _as(node, (c.images, *map(len, node.numbers["kept"])))


def _resize(c: Checked, number: int, node: Node) -> None:
    (x,) = c.given(node, 1)
    need(x.kind != "gate" and len(node.shape) == 4, "it is no picture")
    most = []
    for axis, size, out in zip(("rows", "columns"), x.shape[2:], node.shape[2:]):
        rows = node.numbers[axis]
        need(isinstance(rows, list) and len(rows) == out and all(rows), f"its {axis} are none")
        for i, weight in (pair for row in rows for pair in row):
            whole(i, 0, size - 1), real(weight)
        most.append(max(map(len, rows)))
    _as(node, (c.images, x.shape[1], len(node.numbers["rows"]), len(node.numbers["columns"])))
    need(c.images * prod(node.shape[2:]) * prod(most) <= MIXED, f"it mixes {most} pixels")


def _cat(c: Checked, number: int, node: Node) -> None:
    read = c.given(node)
    need(bool(read) and all(r.shape[2:] == read[0].shape[2:] and r.kind != "gate" for r in read), "its parts differ")
    _as(node, (c.images, sum(r.shape[1] for r in read), *read[0].shape[2:]))


def _torch(c: Checked, number: int, node: Node) -> None:
    made = fallback.derived(node, [c.objects[i] for i in node.inputs], c.most)
    shape = tuple(made.shape) if isinstance(made, Tensor) else ()
    need(shape == node.shape, f"it declares shape {node.shape}; its operator gives {shape}")
    if whole_truth(node.numbers["plain"]):
        need(isinstance(made, Tensor) and made.dtype == torch.float32, "what it gives are no floats")
    c.objects[number] = made


RULES: dict[str, Callable[[Checked, int, Node], None]] = {
    "input": _input,
    "constant": _constant,
    "conv": _conv,
    "linear": _linear,
    "rows": _rows,
    "add": _pair,
    "mul": _pair,
    "pool": _pool,
    "mean": _mean,
    "flatten": _flatten,
    "gate": _gate,
    "pick": _pick,
    "resize": _resize,
    "cat": _cat,
    "torch": _torch,
}
