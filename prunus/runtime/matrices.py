"""Products with a matrix: dense ones, whose lanes are outputs, and sparse ones, an output at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from prunus.runtime.activations import activate
from prunus.runtime.emit import Emitter
from prunus.runtime.layout import FLOAT

OUTPUTS = 4  # vectors of outputs that a dense product makes at once


def emit_linear(lanes: int, inputs: int, function: str = "") -> str:
    """A dense product, lanes are outputs.

    0 x, 1 y, 2 weights (outputs / (OUTPUTS * lanes), inputs, OUTPUTS * lanes), 3 bias, 4 such blocks of outputs,
    5 rows, 6 and 7 bytes of a row of x and of y, 8 low, 9 high (floats).
    """
    e = Emitter(lanes)
    x, y, weights, bias = (e.slot(i) for i in range(4))
    blocks, rows, x_row, y_row = (e.slot(i, e.i64) for i in range(4, 8))
    low, high = e.broadcast(e.arguments, 64), e.broadcast(e.arguments, 72)
    width = OUTPUTS * lanes * FLOAT

    def block(j: Any) -> None:
        w = e.offset(weights, e.b.mul(j, e.const(width * inputs)))
        column = e.b.mul(j, e.const(width))

        def row(n: Any) -> None:
            xs, ys = e.offset(x, e.b.mul(n, x_row)), e.offset(y, e.b.add(e.b.mul(n, y_row), column))

            def entry(i: Any, *sums: Any) -> list[Any]:
                value, line = e.broadcast(xs, e.b.mul(i, e.const(FLOAT))), e.offset(w, e.b.mul(i, e.const(width)))
                return [e.call("fma", value, e.load(line, 4 * lanes * k), s) for k, s in enumerate(sums)]

            start = [e.load(e.offset(bias, column), 4 * lanes * k) for k in range(OUTPUTS)]
            for k, s in enumerate(e.loop(0, inputs, entry, start)):
                e.store(activate(e, function, s, low, high), ys, 4 * lanes * k)

        e.loop(0, rows, row)

    e.loop(*e.share(blocks), block)
    return str(e)


def emit_sparse_linear(lanes: int, unroll: int = 4) -> str:
    """A sparse product, one output at a time.

    0 x, 1 y, 2 entries (int32 offset, float weight), 3 ends (outputs + 1, multiples of `unroll`), 4 bias, 5 outputs,
    6 rows, 7 and 8 bytes of a row of x and of y, 9 low, 10 high (floats).
    """
    e = Emitter(lanes)
    x, y, entries, ends, bias = (e.slot(i) for i in range(5))
    outputs, rows, x_row, y_row = (e.slot(i, e.i64) for i in range(5, 9))
    low, high = (e.b.load(e.offset(e.arguments, at), typ=e.f32) for at in (72, 80))

    def output(o: Any) -> None:
        start, end = e.number(ends, o), e.number(e.offset(ends, 4), o)
        at = e.b.mul(o, e.const(FLOAT))

        def row(n: Any) -> None:
            xs = e.offset(x, e.b.mul(n, x_row))

            def entry(i: Any, *sums: Any) -> list[Any]:
                new = []
                for u, s in enumerate(sums):
                    here = e.offset(entries, e.b.add(e.b.mul(i, e.const(8)), e.const(8 * u)))
                    value = e.b.load(e.offset(xs, e.number(here, e.const(0), 1)), typ=e.f32)
                    new.append(e.b.fadd(s, e.b.fmul(e.b.load(e.offset(here, 4), typ=e.f32), value)))
                return new

            zero = e.ir.Constant(e.f32, 0.0)
            sums = e.loop(start, end, entry, [e.b.load(e.offset(bias, at), typ=e.f32)] + [zero] * (unroll - 1), unroll)
            while len(sums) > 1:
                sums = [e.b.fadd(p, q) for p, q in zip(sums[::2], sums[1::2])]
            e.b.store(e.clamp(sums[0], low, high), e.offset(y, e.b.add(e.b.mul(n, y_row), at)))

        e.loop(0, rows, row)

    e.loop(*e.share(outputs), output)
    return str(e)


def rows_as_lists(weight: np.ndarray, unroll: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """A matrix (outputs, inputs) as `emit_sparse_linear` reads it: entries (n, 2) int32 and ends (outputs + 1)."""
    o, i = np.nonzero(weight)
    count = np.bincount(o, minlength=len(weight))
    ends = np.concatenate([[0], np.cumsum(-(-count // unroll) * unroll)])
    entries = np.zeros((ends[-1], 2), dtype=np.int32)
    place = ends[o] + np.arange(len(o)) - np.concatenate([[0], np.cumsum(count)])[o]
    entries[place, 0] = i * FLOAT
    entries[place, 1] = weight[o, i].astype(np.float32).view(np.int32)
    return entries, ends.astype(np.int32)
