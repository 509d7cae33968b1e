"""The kernel that runs kernels: a network without a return to Python."""

from __future__ import annotations

from typing import Any

from prunus.runtime.emit import Emitter


class _Function:
    """A pointer as llvmlite wants what is called to look."""

    def __init__(self, pointer: Any, kind: Any) -> None:
        self.function_type, self.type, self.get_reference = kind, pointer.type, pointer.get_reference


def emit_walk(lanes: int) -> str:
    """Runs a table of kernels in turn, threads waiting for each other after every one.

    0 table (address of the kernel, address of its arguments), 1 its length, 2 an int64 that is zero at the start.
    """
    e = Emitter(lanes)
    table, count, gate = e.slot(0), e.slot(1, e.i64), e.slot(2)
    kind = e.ir.FunctionType(e.ir.VoidType(), [e.pointer, e.i64, e.i64])
    several = e.b.icmp_signed(">", e.threads, e.const(1))

    def step(i: Any) -> None:
        entry = e.offset(table, e.b.mul(i, e.const(16)))
        kernel, arguments = e.b.load(entry, typ=e.pointer), e.b.load(e.offset(entry, 8), typ=e.pointer)
        e.b.call(_Function(kernel, kind), [arguments, e.thread, e.threads])
        with e.b.if_then(several):
            e.b.atomic_rmw("add", gate, e.const(1), "seq_cst")
            all_here = e.b.mul(e.b.add(i, e.const(1)), e.threads)
            wait, after = e.function.append_basic_block(), e.function.append_basic_block()
            e.b.branch(wait)
            e.b.position_at_end(wait)
            seen = e.b.load_atomic(gate, "seq_cst", 8, typ=e.i64)
            e.b.cbranch(e.b.icmp_signed(">=", seen, all_here), after, wait)
            e.b.position_at_end(after)

    e.loop(0, count, step)
    return str(e)
