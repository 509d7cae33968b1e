"""The convolution kernel: the nonzero weights are data, the geometry is code.

For a strip of T vectors of the output and a block of input channels that fit the first cache, every output channel o
runs through the list of its nonzero weights:

    y[o, t] += w * x[c, stride * t + (ky, kx)]        one broadcast, T multiply-adds from aligned memory.

`together` output channels may share a list (their nonzeros' union): then each vector that was loaded is used that
often.  With all weights in it, that is the dense convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from prunus.runtime.activations import activate
from prunus.runtime.emit import Emitter

ENTRY = np.dtype([("offset", "<i4"), ("weight", "<f4")])
RECORD = np.dtype([("channel", "<i4"), ("start", "<i4"), ("end", "<i4"), ("flags", "<i4")])
FIRST, LAST = 1, 2  # flags of a record: the sum begins with the bias; the sum is complete
SLOTS = (
    "x",
    "y",
    "residual",
    "bias",
    "entries",
    "records",
    "segments",
    "strips",
    "n_strips",
    "n_blocks",
    "low",
    "high",
    "mask",
)


@dataclass(frozen=True)
class Kernel:
    """The geometry that a kernel is made for; strips of ``rows x columns`` vectors.  All distances are in bytes."""

    lanes: int
    rows: int
    columns: int
    x_row: int  # from an output pixel's input to that of the pixel below it
    x_step: int  # ... of the pixel beside it
    y_row: int
    y_plane: int
    together: int = 1
    unroll: int = 1  # nonzeros at once, into sums of their own: hides the latency of short strips
    residual: tuple[int, int] | None = None  # its row and plane
    ahead: bool = False  # ask for the next list's output and residual early: they are not in the second cache
    function: str = ""  # of `activations`, in place of the bounds
    mask: str = ""  # whether outputs are multiplied by their float of `mask`, ``before`` or ``after`` all that follows

    @property
    def entry(self) -> int:
        """Bytes of a list's entry: an offset and the weights of the output channels that share it."""
        return 4 + 4 * self.together


@cache
def emit(k: Kernel) -> str:
    """The kernel in LLVM's language; its arguments are `SLOTS`."""
    e = Emitter(k.lanes)
    x, y, residual, bias, entries, records, segments, strips = (e.slot(i) for i in range(8))
    n_strips, n_blocks = e.slot(8, e.i64), e.slot(9, e.i64)
    low, high = e.broadcast(e.arguments, 80), e.broadcast(e.arguments, 88)
    vector = 4 * k.lanes
    t_x = [r * k.x_row + c * k.x_step for r in range(k.rows) for c in range(k.columns)]
    t_y = [r * k.y_row + c * vector for r in range(k.rows) for c in range(k.columns)]
    t_r = [r * (k.residual or (0, 0))[0] + c * vector for r in range(k.rows) for c in range(k.columns)]

    def strip(s: Any) -> None:
        xs, ys = e.offset(x, e.number(strips, s, 12)), e.offset(y, e.number(e.offset(strips, 4), s, 12))
        rs = e.offset(residual, e.number(e.offset(strips, 8), s, 12)) if k.residual else None

        def block(j: Any) -> None:
            at = e.b.add(e.b.mul(j, e.threads), e.thread)

            def record(r: Any) -> None:
                channel, start, end, flags = (e.number(e.offset(records, 4 * i), r, RECORD.itemsize) for i in range(4))
                yo = [
                    e.offset(ys, e.b.mul(e.b.add(channel, e.const(i)), e.const(k.y_plane))) for i in range(k.together)
                ]

                if k.ahead:
                    after = e.number(records, e.b.add(r, e.const(1)), RECORD.itemsize)
                    for base, plane, offsets in ((ys, k.y_plane, t_y), (rs, (k.residual or (0, 0))[1], t_r)):
                        if base is not None:
                            place = e.offset(base, e.b.mul(after, e.const(plane)))
                            for t in offsets:
                                e.prefetch(place, t, write=base is ys)

                def begin() -> list[Any]:
                    place = e.offset(bias, e.b.mul(channel, e.const(4)))
                    return [b for i in range(k.together) for b in [e.broadcast(place, 4 * i)] * len(t_y)]

                def resume() -> list[Any]:
                    return [e.load(yo[i], t) for i in range(k.together) for t in t_y]

                first = e.b.icmp_signed("!=", e.b.and_(flags, e.const(FIRST)), e.const(0))
                sums = e.either(first, begin, resume)
                sums += [e.floats(0.0)] * (len(sums) * (k.unroll - 1))

                def nonzero(at: Any, *sums: Any) -> list[Any]:
                    new: list[Any] = []
                    for u in range(k.unroll):
                        here = e.offset(e.offset(entries, at), u * k.entry)
                        source = e.offset(xs, e.number(here, e.const(0), 1))
                        weights = [e.broadcast(here, 4 + 4 * i) for i in range(k.together)]
                        begin_at = len(new)
                        new += sums[begin_at : begin_at + k.together * len(t_x)]
                        for n, t in enumerate(t_x):  # one vector at a time: the sums take the registers
                            value = e.load(source, t)
                            for i, w in enumerate(weights):
                                place = begin_at + i * len(t_x) + n
                                new[place] = e.call("fma", w, value, new[place])
                    return new

                scale = e.const(k.entry)
                sums = e.loop(e.b.mul(start, scale), e.b.mul(end, scale), nonzero, sums, step=k.entry * k.unroll)
                size = len(t_y) * k.together
                for u in range(1, k.unroll):
                    sums[:size] = [e.b.fadd(a, b) for a, b in zip(sums, sums[u * size : (u + 1) * size])]

                def finish() -> list[Any]:
                    done = sums[:size]
                    if k.mask:
                        its = e.offset(e.slot(12), e.b.mul(channel, e.const(4)))
                        factors = [f for i in range(k.together) for f in [e.broadcast(its, 4 * i)] * len(t_y)]
                    if k.mask == "before":
                        done = [e.b.fmul(v, f) for v, f in zip(done, factors)]
                    if k.residual:
                        assert rs is not None
                        for i in range(k.together):
                            ro = e.offset(rs, e.b.mul(e.b.add(channel, e.const(i)), e.const(k.residual[1])))
                            for n, t in enumerate(t_r):
                                at = i * len(t_r) + n
                                done[at] = e.b.fadd(done[at], e.load(ro, t))
                    done = [activate(e, k.function, v, low, high) for v in done]
                    return [e.b.fmul(v, f) for v, f in zip(done, factors)] if k.mask == "after" else done

                last = e.b.icmp_signed("!=", e.b.and_(flags, e.const(LAST)), e.const(0))
                done = e.either(last, finish, lambda: sums[:size])
                for i in range(k.together):
                    for n, t in enumerate(t_y):
                        e.store(done[i * len(t_y) + n], yo[i], t)

            e.loop(e.number(segments, at), e.number(e.offset(segments, 4), at), record)

        e.loop(0, n_blocks, block)

    e.loop(0, n_strips, strip)
    return str(e)
