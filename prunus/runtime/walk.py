"""The kernel that runs kernels: a network without a return to Python."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np

from prunus.core.checks import check_arguments, ints
from prunus.core.forked import renewed
from prunus.core.undo import interrupts_held
from prunus.runtime import jit, memory
from prunus.runtime.emit import Emitter

PATIENCE = 4096  # looks at the gate, some microseconds, before a thread gives way: on a busy machine others have to run
MOST = 256  # threads
OPEN = 2**62  # in the gate, when nobody is to wait
YIELD = "" if sys.platform == "win32" else "sched_yield"
some_threads = ints(1, MOST)


class Workers:
    """Threads that run tables of kernels together, one table at a time.

    A process that is forked off has threads of its own.
    """

    def __init__(self, threads: int) -> None:
        check_arguments(locals(), threads=some_threads)
        self.threads = threads
        self.renew()
        renewed(self)
        self.walk = memory.SIGNATURE(jit.address(emit_walk(jit.machine().lanes)))
        self.gate = memory.buffer(8).view(np.int64)

    def renew(self) -> None:
        """Makes the threads, which begin to run with the first table."""
        self.pool = ThreadPoolExecutor(self.threads - 1) if self.threads > 1 else None

    def table(self, steps: Sequence[tuple[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """What `run` takes, and what has to be kept beside it, for kernels' addresses and their arguments."""
        held = memory.aligned(np.array([(kernel, a.ctypes.data) for kernel, a in steps], dtype=np.int64))
        return memory.slots([held, len(steps), self.gate]), held

    def run(self, arguments: np.ndarray) -> None:
        """Runs a table's kernels in turn."""
        at = arguments.ctypes.data
        self.gate[:] = 0
        if self.pool is None:
            self.walk(at, 0, 1)
            return
        others: list[Future[None]] = []
        with interrupts_held():  # threads wait for each other, in memory that has to stay until all are done
            try:
                for i in range(1, self.threads):
                    others.append(self.pool.submit(self.walk, at, i, self.threads))
                self.walk(at, 0, self.threads)
            except BaseException:  # no thread could be started: those that were are not to wait for it
                self.gate[:] = OPEN
                raise
            finally:
                wait(others)


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
            wait, late, give_way, after = (e.function.append_basic_block() for _ in range(4))
            before = e.b.block
            e.b.branch(wait)
            e.b.position_at_end(wait)
            tries = e.b.phi(e.i64)
            tries.add_incoming(e.const(0), before)
            seen = e.b.load_atomic(gate, "seq_cst", 8, typ=e.i64)
            e.b.cbranch(e.b.icmp_signed(">=", seen, all_here), after, late)
            e.b.position_at_end(late)
            more = e.b.add(tries, e.const(1))
            tries.add_incoming(more, late)
            e.b.cbranch(e.b.icmp_signed(">", more, e.const(PATIENCE)), give_way, wait)
            e.b.position_at_end(give_way)
            if YIELD:
                kind_of_yield = e.ir.FunctionType(e.i32, [])
                e.b.call(e.ir.Function(e.module, kind_of_yield, YIELD), [])
            tries.add_incoming(more, give_way)
            e.b.branch(wait)
            e.b.position_at_end(after)

    e.loop(0, count, step)
    return str(e)
