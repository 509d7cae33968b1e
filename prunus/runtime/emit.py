"""A few words on top of llvmlite's builder: loops, vectors, and the one signature that every kernel has.

A kernel is ``void kernel(int64 *arguments, int64 thread, int64 threads)``: its arguments are pointers and numbers in
slots of 8 bytes, so that a whole network is a table of (kernel, arguments), walked without returning to Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


class Emitter:
    """Builds one kernel: `body(emitter)` emits its code; `str(emitter)` is the module in LLVM's language."""

    def __init__(self, lanes: int) -> None:
        from llvmlite import ir

        self.ir, self.lanes = ir, lanes
        self.i8, self.i32, self.i64, self.f32 = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
        self.pointer, self.vector = ir.PointerType(), ir.VectorType(self.f32, lanes)
        self.module = ir.Module()
        kind = ir.FunctionType(ir.VoidType(), [self.pointer, self.i64, self.i64])
        self.function = ir.Function(self.module, kind, "kernel")
        self.arguments, self.thread, self.threads = self.function.args
        self.b = ir.IRBuilder(self.function.append_basic_block())

    def __str__(self) -> str:
        if not self.b.block.is_terminated:
            self.b.ret_void()
        return str(self.module)

    def const(self, value: int) -> Any:
        """A constant int64."""
        return self.ir.Constant(self.i64, value)

    def floats(self, value: float) -> Any:
        """A constant vector."""
        return self.ir.Constant(self.vector, [self.ir.Constant(self.f32, value)] * self.lanes)

    def slot(self, number: int, kind: Any = None) -> Any:
        """The argument in a slot, a pointer unless another `kind` is given."""
        return self.b.load(self.offset(self.arguments, 8 * number), typ=kind or self.pointer)

    def offset(self, pointer: Any, amount: Any) -> Any:
        """A pointer moved by a number of bytes."""
        amount = self.const(amount) if isinstance(amount, int) else amount
        return self.b.gep(pointer, [amount], source_etype=self.i8)

    def number(self, pointer: Any, index: Any, scale: int = 4) -> Any:
        """The int32 at ``pointer + scale * index``, as int64."""
        place = self.offset(pointer, self.b.mul(index, self.const(scale)) if scale != 1 else index)
        return self.b.sext(self.b.load(place, typ=self.i32, align=4), self.i64)

    def load(self, pointer: Any, amount: Any = 0) -> Any:
        """The aligned vector at a number of bytes from a pointer."""
        return self.b.load(self.offset(pointer, amount), typ=self.vector, align=4 * self.lanes)

    def store(self, value: Any, pointer: Any, amount: Any = 0) -> None:
        """Writes an aligned vector."""
        self.b.store(value, self.offset(pointer, amount), align=4 * self.lanes)

    def splat(self, scalar: Any) -> Any:
        """A vector with one float in every lane."""
        one = self.b.insert_element(
            self.ir.Constant(self.vector, self.ir.Undefined), scalar, self.ir.Constant(self.i32, 0)
        )
        zeros = self.ir.Constant(self.ir.VectorType(self.i32, self.lanes), [0] * self.lanes)
        return self.b.shuffle_vector(one, self.ir.Constant(self.vector, self.ir.Undefined), zeros)

    def broadcast(self, pointer: Any, amount: Any = 0) -> Any:
        """A vector of the float at a number of bytes from a pointer."""
        return self.splat(self.b.load(self.offset(pointer, amount), typ=self.f32, align=4))

    def by_picture(self, pointer: Any, row: Any, pictures: int) -> Any:
        """A vector of a float for every picture's lanes, `row` bytes apart."""
        value = self.broadcast(pointer)
        kind = self.ir.VectorType(self.ir.IntType(1), self.lanes)
        for n in range(1, pictures):
            its = self.ir.Constant(kind, [i * pictures // self.lanes == n for i in range(self.lanes)])
            value = self.b.select(its, self.broadcast(pointer, self.b.mul(row, self.const(n))), value)
        return value

    def prefetch(self, pointer: Any, amount: int, *, write: bool) -> None:
        """Asks for a line of the cache; no address is wrong."""
        kind = self.ir.FunctionType(self.ir.VoidType(), [self.pointer, self.i32, self.i32, self.i32])
        full = "llvm.prefetch.p0"
        function = self.module.globals.get(full) or self.ir.Function(self.module, kind, full)
        how = [self.ir.Constant(self.i32, v) for v in (int(write), 3, 1)]
        self.b.call(function, [self.offset(pointer, amount), *how])

    def call(self, name: str, *values: Any) -> Any:
        """An intrinsic of LLVM on vectors, e.g. ``fma``, ``maxnum``."""
        kind = self.ir.FunctionType(self.vector, [self.vector] * len(values))
        full = f"llvm.{name}.v{self.lanes}f32"
        function = self.module.globals.get(full) or self.ir.Function(self.module, kind, full)
        return self.b.call(function, values)

    def larger(self, a: Any, b: Any) -> Any:
        """The larger one, lane by lane; `b` where either is not a number."""
        return self.b.select(self.b.fcmp_ordered(">", a, b), a, b)

    def clamp(self, value: Any, low: Any, high: Any) -> Any:
        """The value between two bounds, lane by lane; what is not a number stays so."""
        value = self.larger(low, value)
        return self.b.select(self.b.fcmp_ordered("<", high, value), high, value)

    def loop(
        self, start: Any, end: Any, body: Callable[..., Sequence[Any] | None], state: Sequence[Any] = (), step: int = 1
    ) -> list[Any]:
        """``for i in range(start, end, step): state = body(i, *state)``; gives the last state.  May run no time."""
        start = self.const(start) if isinstance(start, int) else start
        end = self.const(end) if isinstance(end, int) else end
        before = self.b.block
        inside, after = self.function.append_basic_block(), self.function.append_basic_block()
        self.b.cbranch(self.b.icmp_signed("<", start, end), inside, after)
        self.b.position_at_end(inside)
        i = self.b.phi(self.i64)
        i.add_incoming(start, before)
        running = [self.b.phi(s.type) for s in state]
        for phi, s in zip(running, state):
            phi.add_incoming(s, before)
        new = list(body(i, *running) or [])
        following = self.b.add(i, self.const(step))
        last = self.b.block
        i.add_incoming(following, last)
        for phi, s in zip(running, new):
            phi.add_incoming(s, last)
        self.b.cbranch(self.b.icmp_signed("<", following, end), inside, after)
        self.b.position_at_end(after)
        results = [self.b.phi(s.type) for s in state]
        for result, first, s in zip(results, state, new):
            result.add_incoming(first, before)
            result.add_incoming(s, last)
        return results

    def either(self, condition: Any, yes: Callable[[], Sequence[Any]], no: Callable[[], Sequence[Any]]) -> list[Any]:
        """``yes() if condition else no()``."""
        blocks = [self.function.append_basic_block() for _ in range(3)]
        self.b.cbranch(condition, blocks[0], blocks[1])
        found = []
        for block, make in zip(blocks, (yes, no)):
            self.b.position_at_end(block)
            values = list(make())
            found.append((values, self.b.block))
            self.b.branch(blocks[2])
        self.b.position_at_end(blocks[2])
        results = [self.b.phi(v.type) for v in found[0][0]]
        for values, block in found:
            for result, value in zip(results, values):
                result.add_incoming(value, block)
        return results

    def share(self, count: Any) -> tuple[Any, Any]:
        """This thread's part of ``range(count)``."""
        count = self.const(count) if isinstance(count, int) else count
        start = self.b.sdiv(self.b.mul(count, self.thread), self.threads)
        return start, self.b.sdiv(self.b.mul(count, self.b.add(self.thread, self.const(1))), self.threads)
