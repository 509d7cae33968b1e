"""From a graph to steps: which kernel makes every value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from prunus.core.errors import InputError
from prunus.runtime import channels, fallback, gated, kernels, listed, matrices, pack, patches, weighted, winograd
from prunus.runtime.choose import allowed, best
from prunus.runtime.convolution import emit
from prunus.runtime.forms import ROUND, At, Buffer, Forms, Value, arrange, bounds_of, shape_of
from prunus.runtime.graph import Graph, Node
from prunus.runtime.layout import FLOAT, Layout, pixels, places

SPARSE_LINEAR = 0.25  # density below which a product with a matrix goes by its nonzeros
SECOND_CACHE = 512 * 1024  # bytes: outputs beyond it are asked for ahead of their use

Layouts = tuple[Layout, Layout, Layout | None]  # of input, output and residual


@dataclass(frozen=True)
class Convolution:
    """What a convolution is run as: the number of its step, its weights, and where its values lie."""

    step: int
    weight: np.ndarray
    shape: pack.Shape
    layouts: Layouts


class Builder(Forms):
    """Goes through a graph once, a method a kind of node; `steps`, `values` and the arena's `size` are the result."""

    def __init__(self, graph: Graph, *, lanes: int, registers: int, images: int, threads: int) -> None:
        super().__init__(graph, lanes=lanes, registers=registers, images=images, threads=threads)
        self.convolutions: dict[int, Convolution] = {}
        for number, node in graph.nodes.items():
            getattr(self, "do_" + node.kind)(number, self.values[number])
        given = [self.rows(number) for number in graph.outputs if self.values[number].forms]
        for rows in given:  # after the last of them is made
            rows.dies = len(self.steps)
        self.size = arrange(self.tables, arrange(self.buffers))

    def do_input(self, number: int, value: Value) -> None:
        if value.node.numbers["plain"]:
            value.forms[None, 0.0] = self.buffer(self.images * value.row * FLOAT)

    def do_constant(self, number: int, value: Value) -> None:
        """Nothing: it is given as it is."""

    def do_torch(self, number: int, value: Value) -> None:
        node = value.node
        given = [(i, self.rows(i) if self.values[i].forms else None) for i in node.inputs]
        target = None
        if node.numbers["plain"] and any(n < 0 or self.graph.nodes[n].kind != "torch" for n in self.users[number]):
            target = value.forms[None, 0.0] = self.buffer(self.images * value.row * FLOAT)
        held = [b for _, b in given if b is not None] + ([target] if target is not None else [])
        self.step(node.name, "torch", "", held)
        operator, values = fallback.resolve(node), self.values  # not self, which holds this step: a cycle

        def run(objects: dict[int, Any], view: Callable[[Buffer, Value], Any]) -> None:
            read = [objects[i] if b is None else view(b, values[i]).contiguous() for i, b in given]
            made = operator(read)
            if target is None:
                objects[number] = fallback.owned(made, read)
                return
            if tuple(made.shape) != node.shape:  # what is copied may be spread out, and is not
                raise InputError(
                    f"'{node.name}' gave a value of shape {tuple(made.shape)} in the place of {node.shape}."
                )
            view(target, value).copy_(made)

        self.steps[-1].run = run

    def do_conv(self, number: int, value: Value) -> None:
        node, shape = value.node, shape_of(value.node)
        weight = node.tensors["weight"].detach().float().numpy()
        (wanted, _), *rest = [d for d in self.demand(node) if d is not None]
        x, source = self.want(node.inputs[0], wanted)
        r, residual = self.want(node.inputs[1], rest[0][0]) if rest else (None, None)
        y = self.primary(number)
        target = self.tiles(value, y)
        fx, fy, fr = x, y, r
        pointwise = weight.shape[2:] == (1, 1) and shape.stride == 1 and shape.padding == (0, 0)
        if pointwise and not (x.halo or y.halo or (r is not None and r.halo)):
            fx, fy, fr = pack.flat(x), pack.flat(y), pack.flat(r) if r is not None else None
        if "choice" not in node.numbers:
            choose = listed.choose if gated.by_lists(node) else best
            parts = (listed.shares(self.graph, node),) if gated.by_lists(node) else ()
            node.numbers["choice"] = list(astuple(choose(weight, shape, fy, self.registers, *parts)[0][1]))
        choice = pack.Choice(*node.numbers["choice"])
        if not allowed(choice, weight.shape, shape, fy, self.registers):
            raise InputError(f"'{node.name}' cannot be run as {choice}.")
        bias = np.zeros(-(-len(weight) // ROUND) * ROUND, dtype=np.float32)
        bias[: len(weight)] = node.tensors["bias"].detach().float().numpy()
        held: list[Any] = [source, target, residual or 0, bias]
        sizes = (source.size, target.size, residual.size if residual else None)
        if gated.by_lists(node):
            listed.convolve(self, node, (fx, fy, fr), (source, target, residual), choice)
        else:
            by = getattr(self, "conv_by_" + choice.by)
            by(node, weight, shape, choice, (fx, fy, fr), held, sizes)
        self.convolutions[number] = Convolution(len(self.steps) - 1, weight, shape, (fx, fy, fr))
        self.finish(number, y)

    def conv_by_lists(
        self, node: Node, weight: np.ndarray, shape: pack.Shape, choice: pack.Choice, of: Layouts, held: Any, sizes: Any
    ) -> None:
        table, packed = pack.strips(*of, choice, shape), pack.pack(weight, shape, of[0], choice, self.threads)
        bounds, function = bounds_of(node)
        mask, kind, factors = self.masked(node, "sparse")
        sparse = replace(pack.kernel(*of, choice, shape, sizes[1] > SECOND_CACHE), function=function, mask=mask)
        pack.check_bounds(packed, table, sparse, sizes)
        data = [packed.entries, packed.records, packed.segments, table, len(table), packed.blocks, *bounds]
        self.step(node.name, kind, emit(sparse), [*held, *data, *factors])

    def conv_by_dense(
        self, node: Node, weight: np.ndarray, shape: pack.Shape, choice: pack.Choice, of: Layouts, held: Any, sizes: Any
    ) -> None:
        x, y, r = of
        planes = x.plane, y.plane, r.plane if r is not None else 0
        used = (
            np.flatnonzero((weight != 0).any((0, 2, 3)))
            if shape.groups == 1
            else np.arange(weight.shape[1] * shape.groups)
        )
        lists = [(used, np.arange(len(weight)))]
        table, (bounds, function) = pack.strips(*of, choice, shape), bounds_of(node)
        mask, kind, factors = self.masked(node, "dense")
        dense = replace(channels.kernel(*of, choice, shape, weight.shape), function=function, mask=mask)
        tables = channels.tables(
            weight.shape, shape.groups, lists, planes, together=choice.together, threads=self.threads
        )
        if shape.groups == 1 and len(used):
            weight, tables = channels.in_order(weight, used, choice, tables)
            dense = replace(dense, tap=4 * choice.together)
        channels.check_bounds(tables, table, dense, weight.nbytes, sizes)
        data = [tables.ins, tables.outs, tables.jobs, tables.segments, table, len(table), *bounds, choice.channels]
        self.step(node.name, kind, channels.emit(dense), [*held, weight, *data, *factors])

    def conv_by_winograd(
        self, node: Node, weight: np.ndarray, shape: pack.Shape, choice: pack.Choice, of: Layouts, held: Any, sizes: Any
    ) -> None:
        (c_out, c_in), (bounds, function) = weight.shape[:2], bounds_of(node)
        mask, kind, factors = self.masked(node, "winograd")
        k = replace(patches.kernel(*of, choice), function=function, mask=mask)
        starts, strips = patches.starts(*of, shape, k)
        patches.check_bounds(starts, k, (c_in, c_out), sizes)
        packed, (plane, products, share) = patches.pack(weight, k), patches.work(c_in, c_out, k)
        data = [packed, 0, 0, 0, 0, starts, strips, len(strips), *bounds, self.buffer(self.threads * share)]
        rest = [plane, products, share, packed[0].nbytes, *(factors or [0]), c_in, c_out]
        self.step(node.name, kind, winograd.emit(k), [*held, *data, *rest])

    def masked(self, node: Node, kind: str) -> tuple[str, str, list[Any]]:
        """When a convolution is multiplied by a mask, if ever, what its step is called, and the mask's factors."""
        mask = node.numbers.get("mask", "")
        return (mask, "masked", [self.values[node.numbers["out"]].forms[None, 0.0]]) if mask else ("", kind, [])

    def do_pool(self, number: int, value: Value) -> None:
        node, shape = value.node, shape_of(value.node)
        ((wanted, fill),) = [d for d in self.demand(node) if d is not None]
        x, source = self.want(node.inputs[0], wanted, fill)
        y = self.primary(number)
        target = self.tiles(value, y)
        lists, counts = self.written(node), node.numbers.get("counts")
        more = {"listed": lists is not None, "counted": counts is not None}
        window = tuple(node.numbers["kernel"])
        text = kernels.emit_pool(x, y, window, shape.stride, shape.padding, node.numbers["of"], **more)
        counted = [] if counts is None else [weighted.shares(counts, y)]
        self.step(node.name, "pool", text, [source, target, value.channels if lists is None else lists, *counted])
        self.finish(number, y)

    def do_add(self, number: int, value: Value) -> None:
        node = value.node
        (a, source), *rest = (self.want(i, d[0]) for i, d in zip(node.inputs, self.demand(node)) if d is not None)
        b, other = rest[0] if rest else (None, self.rows(node.inputs[1]))
        y = self.primary(number)
        target = self.tiles(value, y)
        bounds, function = bounds_of(node)
        rows = [] if rest else [self.values[node.inputs[1]].row * FLOAT]
        text = kernels.emit_pairs(node.kind, a, b, y, function)
        self.step(node.name, node.kind, text, [source, target, other, *bounds, value.channels, *rows])
        self.finish(number, y)

    do_mul = do_add

    def do_mean(self, number: int, value: Value) -> None:
        numbers = value.node.numbers
        x, source = self.want(value.node.inputs[0], self.canonical(self.graph.nodes[value.node.inputs[0]].shape))
        target = value.forms[None, 0.0] = self.buffer(self.images * value.row * FLOAT)
        which = self.lists[numbers["into"]] if "into" in numbers else value.channels
        text = kernels.emit_mean(x, absolute=numbers.get("absolute", False), listed="into" in numbers)
        self.step(value.node.name, "mean", text, [source, target, which, value.row * FLOAT])

    def do_gate(self, number: int, value: Value) -> None:
        listed.decide(self, number, value)

    def do_flatten(self, number: int, value: Value) -> None:
        value.forms[None, 0.0] = self.rows(value.node.inputs[0])

    def do_linear(self, number: int, value: Value) -> None:
        node = value.node
        source = self.rows(node.inputs[0])
        x_row, y_row = self.values[node.inputs[0]].row * FLOAT, value.row * FLOAT
        target = value.forms[None, 0.0] = self.buffer(self.images * y_row)
        weight = node.tensors["weight"].detach().float().numpy()
        outputs, inputs = weight.shape
        bias = np.zeros(value.row, dtype=np.float32)
        bias[:outputs] = node.tensors["bias"].detach().float().numpy()
        bounds, function = bounds_of(node)
        if (weight != 0).mean() < SPARSE_LINEAR and not function:
            entries, ends = matrices.rows_as_lists(weight)
            arguments = [source, target, entries, ends, bias, outputs, self.images, x_row, y_row, *bounds]
            self.step(node.name, "sparse", matrices.emit_sparse_linear(self.lanes), arguments)
        else:
            each = matrices.OUTPUTS * self.lanes
            blocks = value.row // each
            filled = np.zeros((blocks * each, inputs), dtype=np.float32)
            filled[:outputs] = weight
            packed = np.ascontiguousarray(filled.reshape(blocks, each, inputs).transpose(0, 2, 1))
            arguments = [source, target, packed, bias, blocks, self.images, x_row, y_row, *bounds]
            self.step(node.name, "dense", matrices.emit_linear(self.lanes, inputs, function), arguments)

    def do_pick(self, number: int, value: Value) -> None:
        node = value.node
        before = self.values[node.inputs[0]]
        planes, ys, xs = (np.array(k, dtype=np.int64) for k in node.numbers["kept"])
        same = all(np.array_equal(k, np.arange(n)) for k, n in zip((ys, xs), before.node.shape[2:]))
        if same and (planes >= 0).all():
            y, source = self.want(node.inputs[0], self.primary(number))
            arguments = [source, self.tiles(value, y), planes.astype(np.int32), len(planes)]
            self.step(node.name, "layout", kernels.emit_planes(y), arguments)
            self.finish(number, y)
            return
        x, source = self.want(node.inputs[0], self.whole(before))
        y = self.primary(number)
        target = self.tiles(value, y)
        pixel = np.where((ys[:, None] >= 0) & (xs >= 0), ys[:, None] * x.width + xs, -1).reshape(-1)
        of = np.where(pixel >= 0, pixel + np.arange(self.images)[:, None] * x.height * x.width, -1).reshape(-1)
        index = pixels(y)
        table = np.where(index >= 0, of[index], -1)
        table = np.where(table >= 0, places(x)[table], -1).reshape(-1)
        self.copy(value, source, target, table, None, x.plane, y.plane, planes=planes)

    def do_resize(self, number: int, value: Value) -> None:
        numbers, before = value.node.numbers, self.values[value.node.inputs[0]]
        form = self.whole(before)
        x, source = self.want(value.node.inputs[0], form)
        y = self.primary(number)
        sources, weights = weighted.taps(numbers["rows"], numbers["columns"], x, y)
        rest = [*sources.shape[:2], value.channels, x.plane, y.plane]
        text = weighted.emit_weighted(self.lanes)
        self.step(value.node.name, "resize", text, [source, self.tiles(value, y), sources, weights, *rest])

    def do_rows(self, number: int, value: Value) -> None:
        node, source = value.node, self.rows(value.node.inputs[0])
        target = value.forms[None, 0.0] = self.buffer(self.images * value.row * FLOAT)
        given = np.zeros((2, value.row), dtype=np.float32)
        given[:, : value.channels] = [node.tensors[name].numpy() for name in ("scale", "shift")]
        bounds, function = bounds_of(node)
        rest = [value.row // self.lanes, self.images, value.row * FLOAT, *bounds]
        self.step(node.name, "rows", weighted.emit_rows(self.lanes, function), [source, target, *given, *rest])

    def do_cat(self, number: int, value: Value) -> None:
        y = self.primary(number)
        parts = [self.want(i, self.canonical(self.graph.nodes[i].shape)) for i in value.node.inputs]
        target, start = self.tiles(value, y), 0
        for i, (x, source) in zip(value.node.inputs, parts):
            self.move(self.values[i], source, x, At(target, start * y.plane), y)
            start += self.values[i].channels
