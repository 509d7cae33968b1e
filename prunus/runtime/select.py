"""Kernels of gates: which channels are on, as a mask and as lists, and a convolution's tables of those channels.

Lists are int32: how many channels are on and off, two numbers that mean nothing, the channels that are on, those that
are off, both ascending, each with room for all channels.  All is done by the first thread: it takes less than a
microsecond for most layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunus.runtime.channels import INPUT, JOB, OUTPUT
from prunus.runtime.emit import Emitter

HEAD = 16  # bytes before the channels
LEAST = -(1 << 31)


def size(channels: int) -> int:
    """Bytes of the lists of so many channels."""
    return HEAD + 8 * channels


def emit_select(lanes: int, rule: str, scales: bool) -> str:
    """A gate's decisions for one picture, as `gating.decide` says.

    0 saliencies, 1 mask (one float more than channels: zero), 2 lists, 3 the rule's number (a float), 4 channels,
    5 of how many the largest are on: in any case by the rule ``largest``, else where fewer would be.
    """
    e = Emitter(lanes)
    saliency, mask, lists = (e.slot(i) for i in range(3))
    number = e.b.load(e.offset(e.arguments, 24), typ=e.f32)
    channels, many = e.slot(4, e.i64), e.slot(5, e.i64)
    one, zero = e.ir.Constant(e.f32, 1.0), e.ir.Constant(e.f32, 0.0)

    def fill(largest: tuple[Any, Any] | None) -> Any:
        """Writes mask and lists, and says how many channels are on; `largest`: least key, and how many of those."""

        def channel(c: Any, on: Any, off: Any, left: Any) -> list[Any]:
            s = e.b.load(e.offset(saliency, e.b.mul(c, e.const(4))), typ=e.f32)
            wanted = _wanted(e, rule, s, number)
            if largest is not None:
                key = _key(e, e.b.bitcast(s, e.i32), e.i32)
                tie = e.b.and_(e.b.icmp_signed("==", key, largest[0]), e.b.icmp_signed(">", left, e.const(0)))
                left = e.b.sub(left, e.b.zext(tie, e.i64))
                top = e.b.or_(tie, e.b.icmp_signed(">", key, largest[0]))
                wanted = top if wanted is None else e.b.or_(wanted, top)
            factor = s if scales else one
            wanted = e.b.and_(wanted, e.b.fcmp_unordered("!=", factor, zero))
            e.b.store(e.b.select(wanted, factor, zero), e.offset(mask, e.b.mul(c, e.const(4))))
            short = e.b.trunc(c, e.i32)
            e.b.store(short, _place(e, lists, on), align=4)
            e.b.store(short, _place(e, lists, e.b.add(channels, off)), align=4)
            counted = e.b.zext(wanted, e.i64)
            return [e.b.add(on, counted), e.b.add(off, e.b.sub(e.const(1), counted)), left]

        state = [e.const(0), e.const(0), largest[1] if largest is not None else e.const(0)]
        on, off, _ = e.loop(0, channels, channel, state)
        for at, value in ((0, on), (4, off)):
            e.b.store(e.b.trunc(value, e.i32), e.offset(lists, at), align=4)
        return on

    with e.b.if_then(e.b.icmp_signed("==", e.thread, e.const(0))):
        e.b.store(zero, e.offset(mask, e.b.mul(channels, e.const(4))))
        if rule == "largest":
            fill(_search(e, saliency, channels, many))
        else:
            on = fill(None)
            with e.b.if_then(e.b.icmp_signed("<", on, many)):
                fill(_search(e, saliency, channels, many))
    return str(e)


def _wanted(e: Emitter, rule: str, saliency: Any, number: Any) -> Any:
    if rule == "reaches":
        return e.b.fcmp_ordered(">=", saliency, number)
    return e.b.fcmp_ordered(">", saliency, e.ir.Constant(e.f32, 0.0)) if rule == "positive" else None


def _place(e: Emitter, lists: Any, index: Any) -> Any:
    return e.offset(lists, e.b.add(e.b.mul(index, e.const(4)), e.const(HEAD)))


def _key(e: Emitter, bits: Any, kind: Any) -> Any:
    """The bits of floats as integers of the same order."""
    same = (lambda v: e.ir.Constant(kind, v)) if kind is e.i32 else (lambda v: e.ir.Constant(kind, [v] * e.lanes))
    return e.b.xor(bits, e.b.and_(e.b.ashr(bits, same(31)), same(0x7FFFFFFF)))


def _search(e: Emitter, saliency: Any, channels: Any, many: Any) -> tuple[Any, Any]:
    """The key of the `many`-th largest saliency, found bit by bit, and how many channels of that key are taken."""
    kind = e.ir.VectorType(e.i32, e.lanes)
    vectors = e.b.sdiv(e.b.add(channels, e.const(e.lanes - 1)), e.const(e.lanes))
    lane = e.ir.Constant(kind, list(range(e.lanes)))
    added = e.ir.Function(e.module, e.ir.FunctionType(e.i32, [kind]), f"llvm.vector.reduce.add.v{e.lanes}i32")
    ones, zeros, least = (e.ir.Constant(kind, [v] * e.lanes) for v in (1, 0, LEAST))

    def spread(value: Any) -> Any:
        return e.b.bitcast(e.splat(e.b.bitcast(value, e.f32)), kind)

    def count(than: Any, how: str) -> Any:
        bound = spread(than)
        within = spread(e.b.trunc(channels, e.i32))

        def vector(i: Any, total: Any) -> list[Any]:
            bits = e.b.bitcast(e.load(saliency, e.b.mul(i, e.const(4 * e.lanes))), kind)
            first = spread(e.b.trunc(e.b.mul(i, e.const(e.lanes)), e.i32))
            valid = e.b.icmp_signed("<", e.b.add(first, lane), within)
            key = e.b.select(valid, _key(e, bits, kind), least)
            return [e.b.add(total, e.b.select(e.b.icmp_signed(how, key, bound), ones, zeros))]

        return e.b.sext(e.b.call(added, e.loop(0, vectors, vector, [zeros])), e.i64)

    def bit(i: Any, found: Any) -> list[Any]:
        step = e.b.shl(e.ir.Constant(e.i32, 1), e.b.sub(e.ir.Constant(e.i32, 31), e.b.trunc(i, e.i32)))
        tried = e.b.add(found, step)
        return [e.b.select(e.b.icmp_signed(">=", count(tried, ">="), many), tried, found)]

    (found,) = e.loop(0, 32, bit, [e.ir.Constant(e.i32, LEAST)])
    return found, e.b.sub(many, count(found, ">"))


def emit_tables(lanes: int, *, into: bool, out: bool, off: bool, depthwise: bool) -> str:
    """The tables of `channels` for the channels of lists, gathered from those of all channels.

    `into`, `out`: whether there are lists of input and output channels; `off`: whether outputs that are off are
    written, too, without any input; `depthwise`: channels are jobs, of which some are run.

    0 lists of inputs, 1 records of all inputs, 2 those gathered, 3 lists of outputs, 4 records of all outputs (of all
    jobs if depthwise), 5 the same for outputs that are off, 6 those gathered, 7 jobs, 8 segments, 9 inputs,
    10 outputs, 11 output channels at a time.
    """
    e = Emitter(lanes)
    of_in, all_in, ins, of_out, all_out, all_off, outs, jobs, segments = (e.slot(i) for i in range(9))
    inputs, outputs, together = (e.slot(i, e.i64) for i in range(9, 12))

    def gather(lists: Any, first: Any, count: Any, source: Any, target: Any, size: int) -> None:
        def record(i: Any) -> None:
            channel = e.number(e.offset(lists, HEAD), e.b.add(first, i))
            there, here = (e.offset(p, e.b.mul(n, e.const(size))) for p, n in ((source, channel), (target, i)))
            for at in range(0, size, 8):
                e.b.store(e.b.load(e.offset(there, at), typ=e.i64, align=4), e.offset(here, at), align=4)

        e.loop(0, count, record)

    def put(target: Any, values: Sequence[Any]) -> None:
        for i, value in enumerate(values):
            e.b.store(e.b.trunc(value, e.i32), e.offset(target, 4 * i), align=4)

    with e.b.if_then(e.b.icmp_signed("==", e.thread, e.const(0))):
        on, rest, size = outputs, e.const(0), JOB.itemsize if depthwise else OUTPUT.itemsize
        target = jobs if depthwise else outs
        if into:
            gather(of_in, e.const(0), e.number(of_in, e.const(0)), all_in, ins, INPUT.itemsize)
            inputs = e.number(of_in, e.const(0))
        if out:
            on, rest = (e.number(e.offset(of_out, at), e.const(0)) for at in (0, 4))
            gather(of_out, e.const(0), on, all_out, target, size)
            if off:
                gather(of_out, outputs, rest, all_off, e.offset(target, e.b.mul(on, e.const(size))), size)
        if depthwise:
            whole = e.b.add(on, rest) if off else on

            def end(t: Any) -> None:
                put(e.offset(segments, e.b.mul(t, e.const(4))), [e.b.sdiv(e.b.mul(whole, t), e.threads)])

            e.loop(0, e.b.add(e.threads, e.const(1)), end)
        else:
            many = e.b.sdiv(e.b.add(on, e.b.sub(together, e.const(1))), together)
            none = e.const(0)

            def part(total: Any, t: Any) -> Any:
                return e.b.sdiv(e.b.mul(total, t), e.threads)

            def thread(t: Any) -> None:
                after = e.b.add(t, e.const(1))
                ends = [e.b.mul(part(many, at), together) for at in (t, after)]
                ends = [e.b.select(e.b.icmp_signed("<", v, on), v, on) for v in ends]
                spans = [[none, inputs, *ends]]
                if off:
                    spans.append([none, none, *(e.b.add(on, part(rest, at)) for at in (t, after))])
                first = e.b.mul(t, e.const(len(spans)))
                for i, span in enumerate(spans):
                    here = e.b.mul(e.b.add(first, e.const(i)), e.const(JOB.itemsize))
                    put(e.offset(jobs, here), [*span, none, none, none, none])
                put(e.offset(segments, e.b.mul(t, e.const(4))), [first])
                put(e.offset(segments, e.b.mul(after, e.const(4))), [e.b.add(first, e.const(len(spans)))])

            e.loop(0, e.threads, thread)
    return str(e)
