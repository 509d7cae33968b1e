"""The other kernels: moving planes between layouts, pooling, sums, means, and products with a matrix.

`emit_*` gives LLVM's language; the slots of a kernel's arguments are in the docstring.  Kernels share out channels
between threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from prunus.runtime.activations import activate
from prunus.runtime.emit import Emitter
from prunus.runtime.layout import FLOAT, Layout
from prunus.runtime.select import HEAD

PATTERNS = 24  # most kinds of shuffles in one kernel; beyond, floats are copied one by one


def each_channel(e: Emitter, slot: int, listed: bool, source_plane: int, target_plane: int, body: Any) -> None:
    """``body(x, y)`` on this thread's channels of slots 0 and 1; `slot` has their number, or lists of them."""
    x, y = e.slot(0), e.slot(1)
    lists = e.slot(slot)
    channels = e.number(lists, e.const(0)) if listed else e.slot(slot, e.i64)

    def channel(c: Any) -> None:
        c = e.number(e.offset(lists, HEAD), c) if listed else c
        body(e.offset(x, e.b.mul(c, e.const(source_plane))), e.offset(y, e.b.mul(c, e.const(target_plane))))

    e.loop(*e.share(channels), channel)


def shuffles(table: np.ndarray, *, in_place: bool) -> tuple[list[tuple[int, ...]], list[np.ndarray]] | None:
    """A map of floats (`layout.remap`) as whole vectors: lane patterns, and (vectors, 2) of bytes (to, from) for each.

    -1 in a pattern is a zero.  Vectors that stay as they are are left out when `in_place`.  None where the lanes of
    a vector come from several vectors, or patterns are many.
    """
    lanes = table.shape[1]
    valid = table >= 0
    source = np.where(valid, table // lanes, -1)
    vector = source.max(1)
    if (valid & (source != vector[:, None])).any():
        return None
    pattern = np.where(valid, table % lanes, -1)
    vector = np.maximum(vector, 0)
    if in_place:
        keep = ~((pattern == np.arange(lanes)).all(1) & (vector == np.arange(len(table))))
    else:
        keep = np.ones(len(table), dtype=bool)
    kinds, which = np.unique(pattern[keep], axis=0, return_inverse=True)
    if len(kinds) > PATTERNS:
        return None
    pairs = np.stack([np.flatnonzero(keep), vector[keep]], axis=1).astype(np.int32) * lanes * FLOAT
    return [tuple(k.tolist()) for k in kinds], [pairs[which.reshape(-1) == i] for i in range(len(kinds))]


def emit_shuffle(
    lanes: int,
    source: Layout,
    target: Layout,
    kinds: list[tuple[int, ...]],
    counts: list[int],
    listed: bool = False,
) -> str:
    """Moves planes by whole vectors.

    0 x, 1 y, 2 pairs (of all kinds in turn), 3 fill (a float), 4 channels, or with `listed` lists of them.
    """
    e = Emitter(lanes)
    pairs, fill = e.slot(2), e.broadcast(e.arguments, 24)
    index = e.ir.VectorType(e.i32, lanes)

    def plane(x: Any, y: Any) -> None:
        start = 0
        for kind, count in zip(kinds, counts):
            order = e.ir.Constant(index, [i if i >= 0 else lanes for i in kind])

            def move(i: Any, order: Any = order) -> None:
                here, there = e.number(pairs, i, 8), e.number(e.offset(pairs, 4), i, 8)
                e.store(e.b.shuffle_vector(e.load(x, there), fill, order), y, here)

            e.loop(start, start + count, move)
            start += count

    each_channel(e, 4, listed, source.plane, target.plane, plane)
    return str(e)


def copying(lanes: int, sources: np.ndarray, targets: np.ndarray | None) -> tuple[str, np.ndarray, int]:
    """The kernel, its table and the table's length for ``target[targets[i]] = source[sources[i]]`` (None: in order)."""
    if targets is None and lanes == 16 and len(sources) % lanes == 0:
        return emit_gather(lanes), sources.astype(np.int32), len(sources) // lanes
    places = np.arange(len(sources)) if targets is None else targets
    return emit_copy(lanes), np.stack([places, sources], axis=1).astype(np.int32), len(sources)


def emit_copy(lanes: int) -> str:
    """Moves floats one by one.

    0 x, 1 y, 2 pairs of int32 (to, from; -1: fill), 3 their number, 4 planes (int32, the source of each target
    channel; -1: all fill), 5 channels, 6 and 7 bytes of a source and a target plane, 8 fill (a float).
    """
    e = Emitter(lanes)
    x, y, pairs, count, planes = e.slot(0), e.slot(1), e.slot(2), e.slot(3, e.i64), e.slot(4)
    channels, x_plane, y_plane = (e.slot(i, e.i64) for i in (5, 6, 7))
    fill = e.b.load(e.offset(e.arguments, 64), typ=e.f32)

    def plane(c: Any) -> None:
        source = e.number(planes, c)
        empty = e.b.icmp_signed("<", source, e.const(0))
        source = e.b.select(empty, e.const(0), source)
        xs, ys = e.offset(x, e.b.mul(source, x_plane)), e.offset(y, e.b.mul(c, y_plane))

        def move(i: Any) -> None:
            here, there = e.number(pairs, i, 8), e.number(e.offset(pairs, 4), i, 8)
            none = e.b.or_(empty, e.b.icmp_signed("<", there, e.const(0)))
            there = e.b.select(none, e.const(0), there)
            value = e.b.load(e.offset(xs, e.b.mul(there, e.const(FLOAT))), typ=e.f32)
            e.b.store(e.b.select(none, fill, value), e.offset(ys, e.b.mul(here, e.const(FLOAT))))

        e.loop(0, count, move)

    e.loop(*e.share(channels), plane)
    return str(e)


def emit_gather(lanes: int) -> str:
    """`emit_copy` to whole vectors one after the other, with AVX-512's gather: 2 is a table of int32 sources alone.

    0 x, 1 y, 2 sources (-1: fill), 3 their vectors, 4 planes, 5 channels, 6 and 7 bytes of planes, 8 fill (a float).
    """
    e = Emitter(lanes)
    x, y, table, count, planes = e.slot(0), e.slot(1), e.slot(2), e.slot(3, e.i64), e.slot(4)
    channels, x_plane, y_plane, fill = (
        e.slot(5, e.i64),
        e.slot(6, e.i64),
        e.slot(7, e.i64),
        e.broadcast(e.arguments, 64),
    )
    indices, bits = e.ir.VectorType(e.i32, lanes), e.ir.VectorType(e.ir.IntType(1), lanes)
    kind = e.ir.FunctionType(e.vector, [e.vector, e.pointer, indices, bits, e.i32])
    gather = e.ir.Function(e.module, kind, "llvm.x86.avx512.mask.gather.dps.512")
    none = e.ir.Constant(indices, [-1] * lanes)

    def plane(c: Any) -> None:
        source = e.number(planes, c)
        empty = e.b.icmp_signed("<", source, e.const(0))
        xs = e.offset(x, e.b.mul(e.b.select(empty, e.const(0), source), x_plane))
        ys = e.offset(y, e.b.mul(c, y_plane))

        def move(i: Any) -> None:
            at = e.b.mul(i, e.const(lanes * FLOAT))
            index = e.b.select(empty, none, e.b.load(e.offset(table, at), typ=indices, align=lanes * FLOAT))
            valid = e.b.icmp_signed(">", index, none)
            e.store(e.b.call(gather, [fill, xs, index, valid, e.ir.Constant(e.i32, FLOAT)]), ys, at)

        e.loop(0, count, move)

    e.loop(*e.share(channels), plane)
    return str(e)


def emit_pool(
    x: Layout,
    y: Layout,
    kernel: tuple[int, int],
    stride: int,
    padding: tuple[int, int],
    kind: str,
    *,
    listed: bool = False,
    counted: bool = False,
) -> str:
    """``max`` or ``mean`` of windows: 0 x, 1 y, 2 channels, or with `listed` lists of them, 3 shares.

    With `counted`, every pixel's sum is multiplied by its own share (`weighted.shares`).
    """
    e = Emitter(x.lanes)
    shares = e.slot(3) if counted else None
    step = 4 * x.lanes
    taps = [x.at(ky - padding[0], kx - padding[1]) for ky in range(kernel[0]) for kx in range(kernel[1])]

    def plane(xs: Any, ys: Any) -> None:
        def row(r: Any) -> None:
            x_row, y_row = e.b.mul(r, e.const(stride * x.row)), e.b.mul(r, e.const(y.row))

            def pixel(c: Any) -> None:
                source = e.offset(xs, e.b.add(x_row, e.b.mul(c, e.const(stride * step))))
                value = e.load(source, taps[0])
                for tap in taps[1:]:
                    other = e.load(source, tap)
                    value = e.larger(value, other) if kind == "max" else e.b.fadd(value, other)
                if shares is not None:
                    place = e.b.add(e.b.mul(r, e.const(y.tile[1])), c)
                    value = e.b.fmul(value, e.load(shares, e.b.mul(place, e.const(step))))
                elif kind == "mean":
                    value = e.b.fmul(value, e.floats(1 / len(taps)))
                e.store(value, ys, e.b.add(e.b.add(y_row, e.b.mul(c, e.const(step))), e.const(y.at(0, 0))))

            e.loop(0, y.tile[1], pixel)

        e.loop(0, y.tile[0], row)

    each_channel(e, 2, listed, x.plane, y.plane, plane)
    return str(e)


def emit_pairs(of: str, a: Layout, b: Layout | None, y: Layout, function: str = "") -> str:
    """``add`` or ``mul`` of two, then bounds or a function: 0 a, 1 y, 2 b, 3 low, 4 high (floats), 5 channels.

    Without a layout `b` has a float for every picture and channel, in rows of slot 6 bytes.
    """
    e = Emitter(y.lanes)
    other, low, high = e.slot(2), e.broadcast(e.arguments, 24), e.broadcast(e.arguments, 32)
    channels, (pa, py) = e.slot(5, e.i64), (e.slot(0), e.slot(1))
    b_row = None if b else e.slot(6, e.i64)
    step = 4 * y.lanes

    def plane(c: Any) -> None:
        at_a, at_y = (
            e.offset(p, e.b.add(e.b.mul(c, e.const(at.plane)), e.const(at.at(0, 0)))) for p, at in ((pa, a), (py, y))
        )
        if b:
            at_b = e.offset(other, e.b.add(e.b.mul(c, e.const(b.plane)), e.const(b.at(0, 0))))
        else:
            alone = e.by_picture(e.offset(other, e.b.mul(c, e.const(FLOAT))), b_row, y.images)

        def row(r: Any) -> None:
            ra, ry = (e.offset(p, e.b.mul(r, e.const(at.row))) for p, at in ((at_a, a), (at_y, y)))
            rb = e.offset(at_b, e.b.mul(r, e.const(b.row))) if b else None

            def pixel(i: Any) -> None:
                at = e.b.mul(i, e.const(step))
                both = e.load(ra, at), alone if rb is None else e.load(rb, at)
                value = e.b.fadd(*both) if of == "add" else e.b.fmul(*both)
                e.store(activate(e, function, value, low, high), ry, at)

            e.loop(0, y.tile[1], pixel)

        e.loop(0, y.tile[0], row)

    e.loop(*e.share(channels), plane)
    return str(e)


def emit_planes(layout: Layout) -> str:
    """Whole channels by number: 0 x, 1 y, 2 planes (int32, the source of each target channel), 3 channels."""
    e = Emitter(layout.lanes)
    x, y, planes = e.slot(0), e.slot(1), e.slot(2)

    def plane(c: Any) -> None:
        xs = e.offset(x, e.b.mul(e.number(planes, c), e.const(layout.plane)))
        ys = e.offset(y, e.b.mul(c, e.const(layout.plane)))

        def move(i: Any) -> None:
            at = e.b.mul(i, e.const(FLOAT * layout.lanes))
            e.store(e.load(xs, at), ys, at)

        e.loop(0, layout.vectors, move)

    e.loop(*e.share(e.slot(3, e.i64)), plane)
    return str(e)


def emit_mean(x: Layout, *, absolute: bool = False, listed: bool = False) -> str:
    """The mean of every picture, or of its absolute values: 0 x, 1 y (images, row), 2 channels, 3 bytes of a row of y.

    With `listed`, 2 are lists of channels; the mean of those that are off is zero.
    """
    e = Emitter(x.lanes)
    px, py, y_row = e.slot(0), e.slot(1), e.slot(3, e.i64)
    each = x.lanes // x.images

    def plane(c: Any) -> None:
        xs = e.offset(px, e.b.add(e.b.mul(c, e.const(x.plane)), e.const(x.at(0, 0))))

        def row(r: Any, total: Any) -> list[Any]:
            start = e.offset(xs, e.b.mul(r, e.const(x.row)))

            def pixel(i: Any, total: Any) -> list[Any]:
                value = e.load(start, e.b.mul(i, e.const(4 * x.lanes)))
                return [e.b.fadd(total, e.call("fabs", value) if absolute else value)]

            return e.loop(0, x.tile[1], pixel, [total])

        (total,) = e.loop(0, x.tile[0], row, [e.floats(0.0)])
        total = e.b.fmul(total, e.floats(1 / (x.height * x.width)))
        for n in range(x.images):
            lane = [e.b.extract_element(total, e.ir.Constant(e.i32, n * each + i)) for i in range(each)]
            while len(lane) > 1:
                lane = [e.b.fadd(p, q) for p, q in zip(lane[::2], lane[1::2])]
            place = e.offset(py, e.b.add(e.b.mul(c, e.const(FLOAT)), e.b.mul(y_row, e.const(n))))
            e.b.store(lane[0], place)

    if not listed:
        e.loop(*e.share(e.slot(2, e.i64)), plane)
        return str(e)
    lists = e.slot(2)
    on, off = (e.number(e.offset(lists, at), e.const(0)) for at in (0, 4))
    e.loop(*e.share(on), lambda i: plane(e.number(e.offset(lists, HEAD), i)))
    rest = e.offset(lists, e.b.add(e.b.mul(e.b.add(on, off), e.const(4)), e.const(HEAD)))

    def nothing(i: Any) -> None:
        e.b.store(e.ir.Constant(e.f32, 0.0), e.offset(py, e.b.mul(e.number(rest, i), e.const(FLOAT))))

    e.loop(*e.share(off), nothing)
    return str(e)
