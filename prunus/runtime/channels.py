"""The dense convolution kernel, over lists of channels: what it costs is active inputs times active outputs.

For a strip of T vectors of the output and a block of input channels that fit the first cache, `together` output
channels at a time,

    y[o, t] = act(b[o] + sum over c in ins, taps of w[o, c, tap] * x[c, stride * t + tap] + residual[o, t]),

with weights where torch has them.  Which channels are in the lists is data, and may change from call to call; with all
channels in them it is the dense convolution, with a list for every channel alone the depthwise one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunus.runtime.emit import Emitter

INPUT = np.dtype([("x", "<i4"), ("weight", "<i4")])  # bytes from a picture's start; from an output's first weight
OUTPUT = np.dtype([("y", "<i4"), ("weight", "<i4"), ("bias", "<i4"), ("residual", "<i4")])  # all in bytes
JOB = np.dtype([(n, "<i4") for n in ("first_in", "last_in", "first_out", "last_out", "x", "y", "residual", "none")])
SLOTS = (
    "x",
    "y",
    "residual",
    "bias",
    "weights",
    "ins",
    "outs",
    "jobs",
    "segments",
    "strips",
    "n_strips",
    "low",
    "high",
    "block",
)
UNROLLED = 25  # taps that are all written out; of more, a row of taps is


@dataclass(frozen=True)
class DenseKernel:
    """The geometry that a kernel is made for; strips of ``rows x columns`` vectors.  All distances are in bytes."""

    lanes: int
    rows: int
    columns: int
    x_row: int  # from an output pixel's input to that of the pixel below it
    x_step: int  # ... of the pixel beside it
    y_row: int
    taps: tuple[tuple[int, ...], ...]  # from the channel's start to every tap of pixel (0, 0), a row of taps at a time
    together: int
    residual: int | None = None  # its row


def emit(k: DenseKernel) -> str:
    """The kernel in LLVM's language; its arguments are `SLOTS`; `jobs` are run by the thread whose segment has them."""
    e = Emitter(k.lanes)
    x, y, residual, bias, weights, ins, outs, jobs, segments, strips = (e.slot(i) for i in range(10))
    n_strips, block = e.slot(10, e.i64), e.slot(13, e.i64)
    low, high = e.broadcast(e.arguments, 88), e.broadcast(e.arguments, 96)
    vector = 4 * k.lanes
    t_x, t_y, t_r = (
        [r * row + c * step for r in range(k.rows) for c in range(k.columns)]
        for row, step in ((k.x_row, k.x_step), (k.y_row, vector), (k.residual or 0, vector))
    )

    def taps_of(source: Any, places: Sequence[Any], at: Any, taps: Sequence[int], sums: list[Any]) -> list[Any]:
        for n, tap in enumerate(taps):
            w = [e.broadcast(e.offset(place, at), 4 * n) for place in places]
            for t, of_x in enumerate(t_x):
                value = e.load(source, tap + of_x)
                for i in range(len(places)):
                    sums[i * len(t_x) + t] = e.call("fma", w[i], value, sums[i * len(t_x) + t])
        return sums

    def group(many: int, g: Any, xs: Any, ys: Any, rs: Any, start: Any, end: Any, first: Any, last: Any) -> None:
        """`many` output channels from the `g`-th on, over the inputs from `start` to `end`."""
        records = [e.offset(outs, e.b.mul(e.b.add(g, e.const(i)), e.const(OUTPUT.itemsize))) for i in range(many)]
        yo, wo, bo, ro = (
            [e.offset(p, e.number(record, e.const(at), 1)) for record in records]
            for p, at in ((ys, 0), (weights, 4), (bias, 8), (rs, 12))
        )

        def channel(c: Any, *sums: Any) -> list[Any]:
            record = e.offset(ins, e.b.mul(c, e.const(INPUT.itemsize)))
            source, at = e.offset(xs, e.number(record, e.const(0), 1)), e.number(record, e.const(4), 1)
            if sum(map(len, k.taps)) <= UNROLLED:
                return taps_of(source, wo, at, [tap for row in k.taps for tap in row], list(sums))
            down = e.const(k.taps[1][0] - k.taps[0][0] if len(k.taps) > 1 else 0)

            def row(r: Any, *sums: Any) -> list[Any]:
                here = e.b.add(at, e.b.mul(r, e.const(4 * len(k.taps[0]))))
                return taps_of(e.offset(source, e.b.mul(r, down)), wo, here, k.taps[0], list(sums))

            return e.loop(0, len(k.taps), row, sums)

        begun = e.either(
            first,
            lambda: [b for p in bo for b in [e.broadcast(p)] * len(t_y)],
            lambda: [e.load(p, t) for p in yo for t in t_y],
        )
        sums = e.loop(start, end, channel, begun)

        def finish() -> list[Any]:
            done = sums
            if k.residual is not None:
                done = [e.b.fadd(s, e.load(p, t)) for s, (p, t) in zip(sums, ((p, t) for p in ro for t in t_r))]
            return [e.clamp(v, low, high) for v in done]

        done = e.either(last, finish, lambda: sums)
        for value, (p, t) in zip(done, ((p, t) for p in yo for t in t_y)):
            e.store(value, p, t)

    def job(j: Any) -> None:
        record = e.offset(jobs, e.b.mul(j, e.const(JOB.itemsize)))
        first_in, last_in, first_out, last_out, at_x, at_y, at_r = (
            e.number(record, e.const(4 * i), 1) for i in range(7)
        )
        xj, yj, rj = e.offset(x, at_x), e.offset(y, at_y), e.offset(residual, at_r)
        many_in, many_out = e.b.sub(last_in, first_in), e.b.sub(last_out, first_out)
        blocks = e.b.sdiv(e.b.add(many_in, e.b.sub(block, e.const(1))), block)
        blocks = e.b.select(e.b.icmp_signed("<", blocks, e.const(1)), e.const(1), blocks)
        whole = e.b.sub(last_out, e.b.srem(many_out, e.const(k.together)))

        def strip(s: Any) -> None:
            xs, ys, rs = (
                e.offset(p, e.number(e.offset(strips, 4 * i), s, 12)) for i, p in enumerate((xj, yj, rj))
            )

            def part(b: Any) -> None:
                start = e.b.add(first_in, e.b.mul(b, block))
                end = e.b.add(start, block)
                end = e.b.select(e.b.icmp_signed("<", end, last_in), end, last_in)
                first, last = e.b.icmp_signed("==", b, e.const(0)), e.b.icmp_signed("==", end, last_in)
                rest = (xs, ys, rs, start, end, first, last)
                if k.together > 1:
                    e.loop(first_out, whole, lambda g: group(k.together, g, *rest), step=k.together)
                    e.loop(whole, last_out, lambda g: group(1, g, *rest))
                else:
                    e.loop(first_out, last_out, lambda g: group(1, g, *rest))

            e.loop(0, blocks, part)

        e.loop(0, n_strips, strip)

    e.loop(e.number(segments, e.thread), e.number(e.offset(segments, 4), e.thread), job)
    return str(e)
