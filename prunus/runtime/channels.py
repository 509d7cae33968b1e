"""The dense convolution kernel, over lists of channels: what it costs is active inputs times active outputs.

For a strip of T vectors of the output and a block of input channels that fit the first cache, `together` output
channels at a time,

    y[o, t] = act(b[o] + sum over c in ins, taps of w[o, c, tap] * x[c, stride * t + tap] + residual[o, t]),

with weights where torch has them.  Which channels are in the lists is data, and may change from call to call; with all
channels in them it is the dense convolution, with a list for every channel alone the depthwise one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prunus.core.errors import InputError
from prunus.runtime.activations import activate
from prunus.runtime.emit import Emitter
from prunus.runtime.layout import Layout
from prunus.runtime.pack import Choice, Shape

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
    "mask",
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
    function: str = ""  # of `activations`, in place of the bounds
    tap: int = 4  # from a weight to the next tap's of the same channels
    mask: str = ""  # whether outputs are multiplied by their float of `mask`, ``before`` or ``after`` all that follows


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
            w = [e.broadcast(e.offset(place, at), k.tap * n) for place in places]
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
                here = e.b.add(at, e.b.mul(r, e.const(k.tap * len(k.taps[0]))))
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
            if k.mask:  # where a bias lies in its array, so does a factor
                at = [e.offset(e.slot(14), e.number(record, e.const(8), 1)) for record in records]
                factors = [f for p in at for f in [e.broadcast(p)] * len(t_y)]
            if k.mask == "before":
                done = [e.b.fmul(s, f) for s, f in zip(done, factors)]
            if k.residual is not None:
                done = [e.b.fadd(s, e.load(p, t)) for s, (p, t) in zip(done, ((p, t) for p in ro for t in t_r))]
            done = [activate(e, k.function, v, low, high) for v in done]
            return [e.b.fmul(v, f) for v, f in zip(done, factors)] if k.mask == "after" else done

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
            xs, ys, rs = (e.offset(p, e.number(e.offset(strips, 4 * i), s, 12)) for i, p in enumerate((xj, yj, rj)))

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


def kernel(
    x: Layout, y: Layout, residual: Layout | None, choice: Choice, shape: Shape, weight: tuple[int, ...]
) -> DenseKernel:
    """The kernel for a convolution with weights of shape (C_out, C_in / groups, kh, kw)."""
    tall, wide = ([i * d - p for i in range(n)] for n, d, p in zip(weight[2:], shape.dilation, shape.padding))
    return DenseKernel(
        lanes=x.lanes,
        rows=choice.rows,
        columns=choice.columns,
        x_row=shape.stride * x.row,
        x_step=shape.stride * 4 * x.lanes,
        y_row=y.row,
        taps=tuple(tuple(x.at(ky, kx) for kx in wide) for ky in tall),
        together=choice.together,
        residual=residual.row if residual else None,
    )


@dataclass(frozen=True)
class Tables:
    """The lists of a call: `ins`, `outs`, `jobs` and the `segments` of threads, all int32."""

    ins: np.ndarray
    outs: np.ndarray
    jobs: np.ndarray
    segments: np.ndarray


def tables(
    weight: tuple[int, ...],
    groups: int,
    lists: Sequence[tuple[np.ndarray, np.ndarray]],
    planes: tuple[int, int, int],
    *,
    compact: bool = False,
    together: int = 1,
    threads: int = 1,
) -> Tables:
    """The lists of a call, for (ins, outs) of every picture, ascending channels: `outs` are made of `ins`.

    `weight`: the shape (C_out, C_in / groups, kh, kw); `planes`: bytes from channel to channel of input, output and
    residual; `compact`: channels of input and output lie as they stand in the lists, one picture's after the other's,
    not as in the layer.
    """
    c_out, c_in, kh, kw = weight
    tap = 4 * kh * kw
    ins, outs = lists[0] if len(lists) == 1 else (np.concatenate(a) for a in zip(*lists))
    of_x, of_y = (np.arange(len(ins)), np.arange(len(outs))) if compact else (ins, outs)
    found_in, found_out = np.empty((len(ins), 2), dtype=np.int32), np.empty((len(outs), 4), dtype=np.int32)
    found_in[:, 0], found_in[:, 1] = of_x * planes[0], ins % c_in * tap
    found_out[:, 0], found_out[:, 1] = of_y * planes[1], outs * (c_in * tap)
    found_out[:, 2], found_out[:, 3] = outs * 4, of_y * planes[2]
    spans, start_in, start_out = [], 0, 0
    for i, o in lists:
        if groups == 1:
            spans.append([[start_in, start_in + len(i), start_out, start_out + len(o)]])
        else:
            edges = np.arange(groups + 1)
            of_in = start_in + np.searchsorted(i, edges * c_in)
            of_out = start_out + np.searchsorted(o, edges * (c_out // groups))
            spans.append(np.stack([of_in[:-1], of_in[1:], of_out[:-1], of_out[1:]], axis=1).tolist())
        start_in, start_out = start_in + len(i), start_out + len(o)
    whole = np.array([span for picture in spans for span in picture if span[3] > span[2]]).reshape(-1, 4)
    return Tables(found_in, found_out, *shares(whole, together, threads))


def in_order(weight: np.ndarray, used: np.ndarray, choice: Choice, t: Tables) -> tuple[np.ndarray, Tables]:
    """The weights in the order in which a dense kernel reads them, where all outputs are made of the inputs `used`.

    weight (C_out, C_in, kh, kw) -> (blocks of inputs, groups of outputs, inputs, kh kw, outputs together), filled with
    zeros; and the tables with its places.  The kernel's `tap` is then four bytes for each of the outputs together.
    """
    (c_out, _, kh, kw), k = weight.shape, choice.together
    groups, block = -(-c_out // k), min(choice.channels, max(1, len(used)))
    blocks = -(-len(used) // block)
    filled = np.zeros((groups * k, blocks * block, kh * kw), dtype=np.float32)
    filled[:c_out, : len(used)] = weight[:, used].reshape(c_out, len(used), kh * kw)
    packed = filled.reshape(groups, k, blocks, block, kh * kw).transpose(2, 0, 3, 4, 1)
    at, o = np.arange(len(used)), np.arange(c_out)
    each = block * kh * kw * k * 4
    ins, outs = t.ins.copy(), t.outs.copy()
    ins[:, 1] = at // block * groups * each + at % block * kh * kw * k * 4
    outs[:, 1] = o // k * each + o % k * 4
    return np.ascontiguousarray(packed), replace(t, ins=ins, outs=outs)


def shares(spans: np.ndarray, together: int, threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Jobs (n, 8) and where those of every thread begin: whole spans, or parts of each where they are few."""
    if threads > 1 and len(spans) < 4 * threads:
        many = -(-(spans[:, 3] - spans[:, 2]) // together)
        cuts = (many[None] * np.arange(threads + 1)[:, None] // threads) * together
        cuts = np.minimum(spans[:, 2] + cuts, spans[:, 3])
        parts = np.repeat(spans[None], threads, axis=0)
        parts[:, :, 2], parts[:, :, 3] = cuts[:-1], cuts[1:]
        segments = np.arange(threads + 1) * len(spans)
        spans = parts.reshape(-1, 4)
    else:
        segments = len(spans) * np.arange(threads + 1) // threads
    jobs = np.zeros((len(spans), 8), dtype=np.int32)
    jobs[:, :4] = spans
    return jobs, segments.astype(np.int32)


def check_bounds(
    t: Tables, strips: np.ndarray, k: DenseKernel, weights: int, sizes: tuple[int, int, int | None]
) -> None:
    """Proves that a kernel stays within `weights` bytes of weights and buffers of `sizes` (input, output, residual).

    Raises `InputError` with what would be touched.
    """
    vector = 4 * k.lanes
    flat = [tap for row in k.taps for tap in row]
    reach = [
        (k.rows - 1) * row + (k.columns - 1) * step + vector
        for row, step in ((k.x_row, k.x_step), (k.y_row, vector), (k.residual or 0, vector))
    ]
    jobs, ins, outs = t.jobs, t.ins, t.outs
    spans = [
        ("input", ins[:, 0], strips[:, 0], jobs[:, 4], (min(flat), max(flat) + reach[0]), sizes[0]),
        ("output", outs[:, 0], strips[:, 1], jobs[:, 5], (0, reach[1]), sizes[1]),
        ("weights", outs[:, 1], ins[:, 1], np.zeros(1), (0, k.tap * (len(flat) - 1) + 4), weights),
    ]
    if k.residual is not None:
        spans.append(("residual", outs[:, 3], strips[:, 2], jobs[:, 6], (0, reach[2]), sizes[2] or 0))
    for what, a, b, c, (before, after), size in spans:
        if not (a.size and b.size and c.size):
            continue
        least, most = (
            int(a.min()) + int(b.min()) + int(c.min()) + before,
            int(a.max()) + int(b.max()) + int(c.max()) + after,
        )
        if least < 0 or most > size:
            raise InputError(
                f"the kernel {k} would touch bytes {least} to {most} of its {what}, which has {size}. This is a fault "
                "of prunus: please report the layer."
            )
    ends = (jobs[:, 0:2], len(ins)), (jobs[:, 2:4], len(outs))
    if any((span < 0).any() or (span > many).any() for span, many in ends):
        raise InputError(f"a job of the kernel {k} leaves its lists. This is a fault of prunus: please report it.")
