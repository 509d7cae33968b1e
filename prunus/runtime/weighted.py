"""Kernels for sums with constant weights: of a channel's pixels, and of single features."""

from __future__ import annotations

from typing import Any

import numpy as np

from prunus.runtime.activations import activate
from prunus.runtime.emit import Emitter
from prunus.runtime.layout import FLOAT, Layout, pixels, places


def emit_weighted(lanes: int) -> str:
    """y = sum over taps of weights x[sources], the same for all channels, by whole vectors of y.

    0 x, 1 y, 2 sources (vectors, taps, lanes; int32, floats of a channel of x, -1: zero), 3 weights (the same; floats),
    4 vectors of a channel of y, 5 taps, 6 channels, 7 and 8 bytes of a channel of x and of y.
    """
    e = Emitter(lanes)
    x, y, sources, weights = (e.slot(i) for i in range(4))
    vectors, taps, channels, x_plane, y_plane = (e.slot(i, e.i64) for i in range(4, 9))
    indices, whole = e.ir.VectorType(e.i32, lanes), 4 * lanes

    def plane(c: Any) -> None:
        xs, ys = e.offset(x, e.b.mul(c, x_plane)), e.offset(y, e.b.mul(c, y_plane))

        def vector(v: Any) -> None:
            start = e.b.mul(v, e.b.mul(taps, e.const(whole)))

            def tap(t: Any, total: Any) -> list[Any]:
                at = e.b.add(start, e.b.mul(t, e.const(whole)))
                index = e.b.load(e.offset(sources, at), typ=indices, align=whole)
                return [e.call("fma", e.load(weights, at), gathered(e, xs, index), total)]

            (total,) = e.loop(0, taps, tap, [e.floats(0.0)])
            e.store(total, ys, e.b.mul(v, e.const(whole)))

        e.loop(0, vectors, vector)

    e.loop(*e.share(channels), plane)
    return str(e)


def gathered(e: Emitter, base: Any, index: Any) -> Any:
    """A vector of the floats with these numbers, zero for a negative one."""
    indices = e.ir.VectorType(e.i32, e.lanes)
    if e.lanes == 16:
        bits = e.ir.VectorType(e.ir.IntType(1), e.lanes)
        kind = e.ir.FunctionType(e.vector, [e.vector, e.pointer, indices, bits, e.i32])
        name = "llvm.x86.avx512.mask.gather.dps.512"
        function = e.module.globals.get(name) or e.ir.Function(e.module, kind, name)
        valid = e.b.icmp_signed(">=", index, e.ir.Constant(indices, [0] * e.lanes))
        return e.b.call(function, [e.floats(0.0), base, index, valid, e.ir.Constant(e.i32, FLOAT)])
    value = e.floats(0.0)
    for lane in range(e.lanes):
        at = e.ir.Constant(e.i32, lane)
        number = e.b.sext(e.b.extract_element(index, at), e.i64)
        valid = e.b.icmp_signed(">=", number, e.const(0))
        place = e.offset(base, e.b.mul(e.b.select(valid, number, e.const(0)), e.const(FLOAT)))
        one = e.b.select(valid, e.b.load(place, typ=e.f32), e.ir.Constant(e.f32, 0.0))
        value = e.b.insert_element(value, one, at)
    return value


Axis = list[list[tuple[int, float]]]  # for every pixel along an axis, of which others it is made, and how much of them


def taps(rows: Axis, columns: Axis, x: Layout, y: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Sources and weights of `emit_weighted`, both (vectors of y, taps, lanes), for a picture made of another."""
    (of_row, by_row), (of_column, by_column) = (_table(axis) for axis in (rows, columns))  # (pixels, taps of the axis)
    source = of_row[:, None, :, None] * x.width + of_column[None, :, None, :]  # (rows, columns, taps, taps)
    weight = by_row[:, None, :, None] * by_column[None, :, None, :]
    picture = np.arange(y.images)[:, None, None] * (x.height * x.width)
    many = weight.shape[2] * weight.shape[3]
    weight = np.tile(weight.reshape(-1, many), (y.images, 1))
    source = np.where(weight != 0, (source.reshape(1, -1, many) + picture).reshape(-1, many), -1)
    source = np.where(source >= 0, places(x)[source], -1)
    index = pixels(y)[:, None, :]  # (vectors, 1, lanes)
    each = np.arange(many)[None, :, None]
    found, by = np.where(index >= 0, source[index, each], -1), np.where(index >= 0, weight[index, each], 0)
    return found.astype(np.int32), by.astype(np.float32)


def _table(axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    most = max(map(len, axis))
    filled = np.array([[*row, *[(0, 0.0)] * (most - len(row))] for row in axis], dtype=np.float64)
    return filled[..., 0].astype(np.int64), filled[..., 1]


def shares(counts: list[list[int]], y: Layout) -> np.ndarray:
    """One by the count of every pixel's window, counts along rows times those along columns: (tile vectors, lanes)."""
    each = 1 / np.outer(counts[0], counts[1]).reshape(-1).astype(np.float64)
    index = pixels(y.with_halo(0))
    return np.where(index >= 0, each[index % len(each)], 0).astype(np.float32)


def emit_rows(lanes: int, function: str = "") -> str:
    """scale x + shift of every feature, then bounds or a function: 0 x, 1 y, 2 scale, 3 shift, 4 their vectors,
    5 rows, 6 bytes of a row, 7 low, 8 high (floats).
    """
    e = Emitter(lanes)
    x, y, scale, shift = (e.slot(i) for i in range(4))
    vectors, rows, size = (e.slot(i, e.i64) for i in range(4, 7))
    low, high = e.broadcast(e.arguments, 56), e.broadcast(e.arguments, 64)

    def vector(v: Any) -> None:
        at = e.b.mul(v, e.const(4 * lanes))
        by, more = e.load(scale, at), e.load(shift, at)

        def row(n: Any) -> None:
            here = e.b.add(at, e.b.mul(n, size))
            e.store(activate(e, function, e.call("fma", e.load(x, here), by, more), low, high), y, here)

        e.loop(0, rows, row)

    e.loop(*e.share(vectors), vector)
    return str(e)
