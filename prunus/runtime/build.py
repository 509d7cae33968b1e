"""From a graph to steps: where every value lies, which kernel makes it, and buffers that are used again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunus.runtime import fallback, kernels, matrices, pack
from prunus.runtime.choose import best
from prunus.runtime.convolution import emit
from prunus.runtime.graph import INFINITY, Graph, Node
from prunus.runtime.layout import FLOAT, Layout, pixels, places, remap
from prunus.runtime.memory import ALIGN

ROW = 64  # floats: rows of plain values are filled up to this many
SPARSE_LINEAR = 0.25  # density below which a product with a matrix goes by its nonzeros
SECOND_CACHE = 512 * 1024  # bytes: outputs beyond it are asked for ahead of their use
ROUND = 4  # channels of a buffer come in so many: lists may be shared by as many


@dataclass(eq=False)
class Buffer:
    """Bytes of the arena from the step that first writes them to the one that last reads them."""

    size: int
    born: int
    dies: int
    offset: int = 0


@dataclass(frozen=True)
class At:
    """A place in a buffer."""

    buffer: Buffer
    offset: int = 0


@dataclass
class Step:
    """A kernel with its arguments, or a function of Python (`run`), and what it is called in reports."""

    name: str
    kind: str
    text: str = ""
    arguments: Sequence[Any] = ()
    run: Callable[[dict[int, Any], Callable[[Buffer, Value], Any]], None] | None = None


@dataclass
class Value:
    """What a node gives: its forms in memory, by layout (None: rows of floats, a picture each) and fill."""

    node: Node
    forms: dict[tuple[Layout | None, float], Buffer] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Channels, or features."""
        return self.node.shape[1]

    @property
    def area(self) -> int:
        """Pixels of a channel."""
        return int(np.prod(self.node.shape[2:], dtype=np.int64))

    @property
    def row(self) -> int:
        """Floats of a picture in rows."""
        return -(-self.channels * self.area // ROW) * ROW


class Builder:
    """Goes through a graph once; `steps`, `values` and the arena's `size` are the result."""

    def __init__(self, graph: Graph, *, lanes: int, registers: int, images: int, threads: int) -> None:
        self.graph, self.lanes, self.registers, self.images, self.threads = graph, lanes, registers, images, threads
        self.steps: list[Step] = []
        self.users = graph.users()
        self.buffers: list[Buffer] = []
        self.values = {number: Value(node) for number, node in graph.nodes.items()}
        self.demands: dict[int, list[tuple[Layout, float]]] = {number: [] for number in graph.nodes}
        for node in graph.nodes.values():
            for source, demand in zip(node.inputs, self.demand(node)):
                if demand is not None:
                    self.demands[source].append(demand)
        for number, node in graph.nodes.items():
            getattr(self, "do_" + node.kind)(number, self.values[number])
        for number in graph.outputs:
            if self.values[number].forms:
                self.rows(number).dies = len(self.steps)
        self.size = arrange(self.buffers)

    # what is wanted

    def canonical(self, shape: tuple[int, ...]) -> Layout:
        """The layout that a value of this shape is made in, but for the halo."""
        height, width = shape[2:]
        return Layout.of(height, width, lanes=self.lanes, images=self.images)

    def demand(self, node: Node) -> list[tuple[Layout, float] | None]:
        """The layout, with the least halo, and the fill in which a node reads each input; None for rows."""
        if node.kind in ("conv", "pool"):
            x = self.graph.nodes[node.inputs[0]]
            kernel = node.numbers["kernel"] if node.kind == "pool" else node.tensors["weight"].shape[2:]
            shape, y = shape_of(node), self.canonical(node.shape)
            layout = y.before(shape.stride, *x.shape[2:]).with_halo(shape.halo(tuple(kernel)))
            fill = -INFINITY if node.numbers.get("of") == "max" and layout.halo and x.low < 0 else 0.0
            return [(layout, fill)] + [(y, 0.0)] * (len(node.inputs) - 1)
        if node.kind in ("add", "cat", "mean"):
            return [(self.canonical(self.graph.nodes[i].shape), 0.0) for i in node.inputs]
        return [None] * len(node.inputs)

    def primary(self, number: int) -> Layout:
        """The layout in which a value is made: with the halo that its readers want."""
        base = self.canonical(self.values[number].node.shape)
        halos = [d.halo for d, fill in self.demands[number] if fill == 0 and d.with_halo(0) == base]
        return base.with_halo(max(halos, default=0))

    # buffers and forms

    def buffer(self, size: int) -> Buffer:
        """A new buffer, born at the next step."""
        made = Buffer(-(-size // ALIGN) * ALIGN, len(self.steps), len(self.steps))
        self.buffers.append(made)
        return made

    def tiles(self, value: Value, layout: Layout) -> Buffer:
        """A new buffer for a value in a layout."""
        made = self.buffer(-(-value.channels // ROUND) * ROUND * layout.plane)
        value.forms[layout, 0.0] = made
        return made

    def step(self, name: str, kind: str, text: str, arguments: Sequence[Any]) -> None:
        """Adds a kernel; its buffers live at least until now."""
        for argument in arguments:
            if isinstance(argument, (At, Buffer)):
                (argument.buffer if isinstance(argument, At) else argument).dies = len(self.steps)
        self.steps.append(Step(name, kind, text, arguments))

    def want(self, number: int, layout: Layout, fill: float = 0.0) -> tuple[Layout, Buffer]:
        """A value in a layout with at least its halo; made from another form if need be."""
        value = self.values[number]
        for (known, filled), buffer in value.forms.items():
            if known is None or known.with_halo(layout.halo) != layout or known.halo < layout.halo:
                continue
            if filled == fill or layout.halo == 0 or (value.node.low >= 0 and fill == -INFINITY):
                return known, buffer
        known, source = next(iter(value.forms.items()))
        made = self.buffer(-(-value.channels // ROUND) * ROUND * layout.plane)
        if known[0] is None:
            table = rows_of(pixels(layout), value)
            self.copy(value, source, made, table.reshape(-1), None, value.area * FLOAT, layout.plane, fill)
        else:
            self.move(value, source, known[0], made, layout, fill)
        value.forms[layout, fill] = made
        return layout, made

    def rows(self, number: int) -> Buffer:
        """A value as rows of floats, one a picture."""
        value = self.values[number]
        if (None, 0.0) in value.forms:
            return value.forms[None, 0.0]
        (layout, _), source = next(iter(value.forms.items()))
        assert layout is not None
        made = self.buffer(self.images * value.row * FLOAT)
        target = rows_of(np.arange(self.images * value.area), value)
        self.copy(value, source, made, places(layout), target, layout.plane, value.area * FLOAT)
        value.forms[None, 0.0] = made
        return made

    def copy(
        self,
        value: Value,
        source: Buffer | At,
        target: Buffer | At,
        sources: np.ndarray,
        targets: np.ndarray | None,
        source_plane: int,
        target_plane: int,
        fill: float = 0.0,
        planes: np.ndarray | None = None,
    ) -> None:
        """Float by float: ``target[c, targets[i]] = source[planes[c], sources[i]]``, the fill where that is -1."""
        planes = (np.arange(value.channels) if planes is None else planes).astype(np.int32)
        rest = [planes, len(planes), source_plane, target_plane, fill]
        if targets is None and self.lanes == 16:
            text, table, many = kernels.emit_gather(self.lanes), sources, len(sources) // self.lanes
        else:
            places = np.arange(len(sources)) if targets is None else targets
            text, table, many = kernels.emit_copy(self.lanes), np.stack([places, sources], axis=1), len(sources)
        self.step(value.node.name, "layout", text, [source, target, table.astype(np.int32), many, *rest])

    def move(
        self, value: Value, source: Buffer, known: Layout, target: Buffer | At, layout: Layout, fill: float = 0.0
    ) -> None:
        """A value, or its halo where source and target are the same, from layout to layout."""
        in_place = source is target
        table = remap(known, layout)
        found = kernels.shuffles(table, in_place=in_place)
        if found is None:
            flat = table.reshape(-1)
            kept = np.flatnonzero(flat != np.arange(len(flat))) if in_place else np.arange(len(flat))
            self.copy(value, source, target, flat[kept], kept if in_place else None, known.plane, layout.plane, fill)
            return
        kinds, pairs = found
        if kinds:
            text = kernels.emit_shuffle(self.lanes, known, layout, kinds, [len(p) for p in pairs])
            self.step(value.node.name, "layout", text, [source, target, np.concatenate(pairs), fill, value.channels])

    def finish(self, number: int, layout: Layout) -> None:
        """Fills the halo and clears the overhang, where a reader looks at them."""
        looked_at = any(self.graph.nodes[n].kind == "mean" for n in self.users[number] if n >= 0)
        if layout.halo or (looked_at and not layout.exact):
            value = self.values[number]
            held = value.forms[layout, 0.0]
            self.move(value, held, layout, held, layout)

    # one method a kind of node

    def do_input(self, number: int, value: Value) -> None:
        if value.node.numbers["plain"]:
            value.forms[None, 0.0] = self.buffer(self.images * value.row * FLOAT)

    def do_torch(self, number: int, value: Value) -> None:
        node = value.node
        given = [(i, self.rows(i) if self.values[i].forms else None) for i in node.inputs]
        target = None
        if node.numbers["plain"] and any(n < 0 or self.graph.nodes[n].kind != "torch" for n in self.users[number]):
            target = value.forms[None, 0.0] = self.buffer(self.images * value.row * FLOAT)
        held = [b for _, b in given if b is not None] + ([target] if target is not None else [])
        self.step(node.name, "torch", "", held)
        operator = fallback.resolve(node)

        def run(objects: dict[int, Any], view: Callable[[Buffer, Value], Any]) -> None:
            read = [objects[i] if b is None else view(b, self.values[i]).contiguous() for i, b in given]
            objects[number] = operator(read)
            if target is not None:
                view(target, value).copy_(objects[number])

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
        choice = self.choose(node, weight, shape, fx, fy, fr)
        lists = pack.pack(weight, shape, fx, choice, self.threads)
        table, k = (
            pack.strips(fx, fy, fr, choice, shape),
            pack.kernel(fx, fy, fr, choice, shape, target.size > SECOND_CACHE),
        )
        pack.check_bounds(lists, table, k, (source.size, target.size, residual.size if residual else None))
        bias = np.zeros(-(-len(weight) // ROUND) * ROUND, dtype=np.float32)
        bias[: len(weight)] = node.tensors["bias"].detach().float().numpy()
        low, high = float(node.numbers.get("low", -INFINITY)), float(node.numbers.get("high", INFINITY))
        data = [bias, lists.entries, lists.records, lists.segments, table, len(table), lists.blocks, low, high]
        kind = "dense" if choice.together == ROUND else "sparse"
        self.step(node.name, kind, emit(k), [source, target, residual or 0, *data])
        self.finish(number, y)

    def choose(
        self, node: Node, weight: np.ndarray, shape: pack.Shape, x: Layout, y: Layout, r: Layout | None
    ) -> pack.Choice:
        """How a layer is run: as noted in the node, else by the model of the inner loop, and noted."""
        if "choice" not in node.numbers:
            choice = best(weight, shape, y, self.registers)[0][1]
            node.numbers["choice"] = [choice.rows, choice.columns, choice.channels, choice.together, choice.unroll]
        return pack.Choice(*node.numbers["choice"])

    def do_pool(self, number: int, value: Value) -> None:
        node, shape = value.node, shape_of(value.node)
        ((wanted, fill),) = [d for d in self.demand(node) if d is not None]
        x, source = self.want(node.inputs[0], wanted, fill)
        y = self.primary(number)
        target = self.tiles(value, y)
        text = kernels.emit_pool(x, y, tuple(node.numbers["kernel"]), shape.stride, shape.padding, node.numbers["of"])
        self.step(node.name, "pool", text, [source, target, value.channels])
        self.finish(number, y)

    def do_add(self, number: int, value: Value) -> None:
        node = value.node
        (a, source), (b, other) = (self.want(i, self.canonical(node.shape)) for i in node.inputs)
        y = self.primary(number)
        target = self.tiles(value, y)
        bounds = [float(node.numbers.get("low", -INFINITY)), float(node.numbers.get("high", INFINITY))]
        self.step(node.name, "add", kernels.emit_add(a, b, y), [source, target, other, *bounds, value.channels])
        self.finish(number, y)

    def do_mean(self, number: int, value: Value) -> None:
        x, source = self.want(value.node.inputs[0], self.canonical(self.graph.nodes[value.node.inputs[0]].shape))
        target = value.forms[None, 0.0] = self.buffer(self.images * value.row * FLOAT)
        arguments = [source, target, value.channels, value.row * FLOAT]
        self.step(value.node.name, "mean", kernels.emit_mean(x), arguments)

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
        bounds = [float(node.numbers.get("low", -INFINITY)), float(node.numbers.get("high", INFINITY))]
        if (weight != 0).mean() < SPARSE_LINEAR:
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
            self.step(node.name, "dense", matrices.emit_linear(self.lanes, inputs), arguments)

    def do_pick(self, number: int, value: Value) -> None:
        node = value.node
        before = self.values[node.inputs[0]]
        channels, ys, xs = (np.array(k, dtype=np.int64) for k in node.numbers["kept"])
        x, source = self.want(
            node.inputs[0], next((f for f, _ in before.forms if f), self.canonical(before.node.shape))
        )
        y = self.primary(number)
        target = self.tiles(value, y)
        pixel = np.where((ys[:, None] >= 0) & (xs >= 0), ys[:, None] * x.width + xs, -1).reshape(-1)
        of = np.where(pixel >= 0, pixel + np.arange(self.images)[:, None] * x.height * x.width, -1).reshape(-1)
        index = pixels(y)
        table = np.where(index >= 0, of[index], -1)
        table = np.where(table >= 0, places(x)[table], -1).reshape(-1)
        self.copy(value, source, target, table, None, x.plane, y.plane, planes=channels)

    def do_cat(self, number: int, value: Value) -> None:
        y = self.primary(number)
        parts = [self.want(i, self.canonical(self.graph.nodes[i].shape)) for i in value.node.inputs]
        target, start = self.tiles(value, y), 0
        for i, (x, source) in zip(value.node.inputs, parts):
            self.move(self.values[i], source, x, At(target, start * y.plane), y)
            start += self.values[i].channels


def shape_of(node: Node) -> pack.Shape:
    """The geometry of a convolution or pool."""
    n = node.numbers
    return pack.Shape(n["stride"], tuple(n["padding"]), tuple(n.get("dilation", (1, 1))), n.get("groups", 1))


def rows_of(pixel: np.ndarray, value: Value) -> np.ndarray:
    """Where pixel (n * height + y) * width + x of a channel lies in rows, counted from the channel's first float."""
    n, rest = np.divmod(pixel, value.area)
    return np.where(pixel >= 0, n * value.row + rest, -1)


def arrange(buffers: list[Buffer]) -> int:
    """Gives every buffer an offset in one arena, so that those that live at a time do not overlap; its size."""
    placed: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda b: -b.size):
        alive = sorted((b for b in placed if b.born <= buffer.dies and buffer.born <= b.dies), key=lambda b: b.offset)
        at = 0
        for other in alive:
            if at + buffer.size <= other.offset:
                break
            at = max(at, other.offset + other.size)
        buffer.offset = at
        placed.append(buffer)
    return max((b.offset + b.size for b in buffers), default=0)
