"""Where every value of a network lies: its forms in memory, how one is made from another, and buffers used again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunus.core.errors import InputError
from prunus.runtime import kernels, pack, transpose
from prunus.runtime.graph import INFINITY, Graph, Node
from prunus.runtime.layout import FLOAT, Layout, pixels, places, remap
from prunus.runtime.memory import ALIGN, most

ROW = 64  # floats: rows of plain values are filled up to this many
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


class Forms:
    """Values with the forms that their readers want, and the steps that bring them from one form to another."""

    def __init__(self, graph: Graph, *, lanes: int, registers: int, images: int, threads: int) -> None:
        self.graph, self.lanes, self.registers, self.images, self.threads = graph, lanes, registers, images, threads
        self.steps: list[Step] = []
        self.left = most()
        self.users = graph.users()
        self.buffers: list[Buffer] = []
        self.tables: list[Buffer] = []  # of integers
        self.lists: dict[int, Buffer] = {}  # of channels that are on and off, by a gate's number
        self.values = {number: Value(node) for number, node in graph.nodes.items()}
        self.demands: dict[int, list[tuple[Layout, float]]] = {number: [] for number in graph.nodes}
        for node in graph.nodes.values():
            for source, demand in zip(node.inputs, self.demand(node)):
                if demand is not None:
                    self.demands[source].append(demand)

    # what is wanted

    def canonical(self, shape: tuple[int, ...]) -> Layout:
        """The layout that a value of this shape is made in, but for the halo."""
        height, width = shape[2:]
        return Layout.of(height, width, lanes=self.lanes, images=self.images)

    def whole(self, value: Value) -> Layout:
        """The layout of a form that a value has, with all of its pixels, or the one that it should be given."""
        return next((f for f, _ in value.forms if f and f.covers), self.canonical(value.node.shape))

    def demand(self, node: Node) -> list[tuple[Layout, float] | None]:
        """The layout, with the least halo, and the fill in which a node reads each input; None for rows."""
        if node.kind in ("conv", "pool"):
            x = self.graph.nodes[node.inputs[0]]
            kernel = node.numbers["kernel"] if node.kind == "pool" else node.tensors["weight"].shape[2:]
            shape, y = shape_of(node), self.canonical(node.shape)
            halo = max(shape.halo(tuple(kernel)), node.numbers.get("beyond", False))
            layout = y.before(shape.stride, *x.shape[2:]).with_halo(halo)
            fill = -INFINITY if node.numbers.get("of") == "max" and layout.halo and x.low < 0 else 0.0
            rest = [self.graph.nodes[i].kind for i in node.inputs[1:]]
            return [(layout, fill), *(None if kind == "gate" else (y, 0.0) for kind in rest)]
        if node.kind in ("add", "mul", "cat", "mean"):
            read = [self.graph.nodes[i] for i in node.inputs]
            rows = [r.kind == "gate" or (node.kind in ("add", "mul") and r.shape != node.shape) for r in read]
            return [None if row else (self.canonical(r.shape), 0.0) for r, row in zip(read, rows)]
        return [None for _ in node.inputs]

    def primary(self, number: int) -> Layout:
        """The layout in which a value is made: with the halo that its readers want."""
        base = self.canonical(self.values[number].node.shape)
        halos = [d.halo for d, fill in self.demands[number] if fill == 0 and d.with_halo(0) == base]
        return base.with_halo(max(halos, default=0))

    # buffers and forms

    def buffer(self, size: int) -> Buffer:
        """A new buffer, born at the next step.  Raises `InputError` where all of them are more than the memory."""
        self.left -= size
        if self.left < 0:
            raise InputError("what the network gives in between takes more memory than there is. Give smaller inputs.")
        made = Buffer(-(-size // ALIGN) * ALIGN, len(self.steps), len(self.steps))
        self.buffers.append(made)
        return made

    def table(self, size: int) -> Buffer:
        """A buffer of integers, born at the next step.

        No floats will lie there: where a vector has lanes beyond the picture, kernels compute with what is left over
        in them, and small integers are floats with which processors are slow.
        """
        made = self.buffer(size)
        self.tables.append(self.buffers.pop())
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
        (before, _), source = next(iter(value.forms.items()))
        made = self.buffer(-(-value.channels // ROUND) * ROUND * layout.plane)
        if before is None:
            table = rows_of(pixels(layout), value)
            if fill == 0 and transpose.pays(layout):
                self.transpose(value, source, made, layout, table)
            else:
                self.copy(value, source, made, table.reshape(-1), None, value.area * FLOAT, layout.plane, fill)
        else:
            self.move(value, source, before, made, layout, fill)
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
        if transpose.pays(layout, back=True):
            table = rows_of(pixels(layout), value)
            self.transpose(value, source, made, layout, table, back=True)
        else:
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
        text, table, many = kernels.copying(self.lanes, sources, targets)
        rest = [planes, len(planes), source_plane, target_plane, fill]
        self.step(value.node.name, "layout", text, [source, target, table, many, *rest])

    def transpose(
        self, value: Value, source: Buffer, target: Buffer, layout: Layout, table: np.ndarray, *, back: bool = False
    ) -> None:
        """Between rows and tiles, by whole vectors."""
        work, width = transpose.blocks(layout, table, back=back)
        planes = np.arange(value.channels).astype(np.int32)
        areas = [value.area * FLOAT, layout.plane][:: -1 if back else 1]
        text = transpose.emit_tiles(self.lanes, width, back=back)
        self.step(value.node.name, "layout", text, [source, target, work, len(work), planes, len(planes), *areas, 0.0])

    def move(
        self, value: Value, source: Buffer, known: Layout, target: Buffer | At, layout: Layout, fill: float = 0.0
    ) -> None:
        """A value, or its halo where source and target are the same, from layout to layout: channels that it has."""
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
            lists = self.written(value.node)
            text = kernels.emit_shuffle(self.lanes, known, layout, kinds, [len(p) for p in pairs], lists is not None)
            rest = [fill, value.channels if lists is None else lists]
            self.step(value.node.name, "layout", text, [source, target, np.concatenate(pairs), *rest])

    def written(self, node: Node) -> Buffer | None:
        """The lists of the channels that are all a value has; None where it has all."""
        n = node.numbers
        return self.lists[n["out"] if "out" in n else n["into"]] if n.get("partial") else None

    def finish(self, number: int, layout: Layout) -> None:
        """Fills the halo and clears the overhang, where a reader looks at them."""
        looked_at = any(self.graph.nodes[n].kind == "mean" for n in self.users[number] if n >= 0)
        if layout.halo or (looked_at and not layout.exact):
            value = self.values[number]
            held = value.forms[layout, 0.0]
            self.move(value, held, layout, held, layout)


def shape_of(node: Node) -> pack.Shape:
    """The geometry of a convolution or pool."""
    n = node.numbers
    return pack.Shape(n["stride"], tuple(n["padding"]), tuple(n.get("dilation", (1, 1))), n.get("groups", 1))


def bounds_of(node: Node) -> tuple[list[float], str]:
    """The bounds that a kernel keeps values between, or the name of the function in their place."""
    numbers = node.numbers
    return [float(numbers.get("low", -INFINITY)), float(numbers.get("high", INFINITY))], numbers.get("function", "")


def rows_of(pixel: np.ndarray, value: Value) -> np.ndarray:
    """Where pixel (n * height + y) * width + x of a channel lies in rows, counted from the channel's first float."""
    n, rest = np.divmod(pixel, value.area)
    return np.where(pixel >= 0, n * value.row + rest, -1)


def arrange(buffers: list[Buffer], start: int = 0) -> int:
    """Gives every buffer an offset in an arena from `start` on; those that live at a time do not overlap.  Its end."""
    placed: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda b: -b.size):
        alive = sorted((b for b in placed if b.born <= buffer.dies and buffer.born <= b.dies), key=lambda b: b.offset)
        at = start
        for other in alive:
            if at + buffer.size <= other.offset:
                break
            at = max(at, other.offset + other.size)
        buffer.offset = at
        placed.append(buffer)
    return max((b.offset + b.size for b in buffers), default=start)
