"""Arguments that are sizes, as they are after a cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from prunus.core import Groups, Operator, TraceError
from prunus.tracing.tracer import Call, Ref

Shape = tuple[int, ...]


@dataclass(eq=False)
class Sizes:
    """The shapes that tensors have after a cut: of their labels, and by number as far as they are known."""

    groups: Groups
    alive: list[Tensor]
    of: dict[int, Shape]
    recorded: dict[int, Shape]

    def left(self, shape: Shape, axes: Sequence[int | None]) -> Shape:
        """A shape after the cut, given the axis of every dimension."""
        axes = [*axes, *[None] * (len(shape) - len(axes))]
        return tuple(n if a is None else int(self.alive[a].sum()) for n, a in zip(shape, axes))


def follow(call: Call, op: Operator, sizes: Sizes) -> tuple[list[Any], dict[str, Any], tuple[Shape, ...]]:
    """The arguments of a call after the cut, and the shapes it then gives.

    Integers that the rules noted become the number of kept rows; sizes and strides that an operator's outputs or
    inputs tell are read off those.

    Raises: `TraceError` for strides that cannot be told.
    """
    args, kwargs = _copied(list(call.args)), dict(call.kwargs)
    axes = [*op.axes, *[()] * len(call.shapes)]
    shapes = tuple(sizes.left(s, a) for s, a in zip(call.shapes, axes))
    for fact in op.facts:
        inner, last = args, fact.path[-1]
        for at in fact.path[:-1]:
            inner = inner[at]
        inner[last] = sizes.groups.kept_rows(sizes.alive, fact.axis, fact.rows)
    inputs = [sizes.of.get(r.number) if isinstance(r, Ref) else None for r in args[:3]]
    before = call.shapes[0] if call.shapes else ()
    if shapes and shapes[0] != before:
        _from_output(call, args, before, shapes, {fact.path[0] for fact in op.facts})
    _from_input(call, args, kwargs, inputs, sizes)
    for number, shape, was in zip(call.writes, shapes, call.shapes):
        sizes.of[number], sizes.recorded[number] = shape, was
    return args, kwargs, shapes


def _copied(args: list[Any]) -> list[Any]:
    return [list(a) if isinstance(a, (list, tuple)) else a for a in args]


def _from_output(call: Call, args: list[Any], before: Shape, shapes: tuple[Shape, ...], noted: set[int]) -> None:
    """Sizes and strides of the first output (strides that a rule has not noted), and the lengths of pieces."""
    after = shapes[0]
    for i, argument in enumerate(call.func._schema.arguments[: len(args)]):
        value = args[i]
        if not isinstance(value, list) or len(value) != len(after):
            continue
        if argument.name in ("size", "shape"):
            args[i] = [s if s == -1 else after[d] for d, s in enumerate(value)]
        elif argument.name == "stride" and before != after and i not in noted:
            args[i] = _strides(call, before, after, value)
    if call.name.endswith(("split", "split_with_sizes")) and len(args) > 1:
        d = (args[2] if len(args) > 2 else call.kwargs.get("dim", 0)) % max(len(after), 1)
        pieces = [shape[d] for shape in shapes]
        args[1] = pieces if isinstance(args[1], list) else args[1] if before[d] == after[d] else pieces[0]


def _strides(call: Call, before: Shape, after: Shape, strides: list[int]) -> list[int]:
    """The strides of the new size in the same order of dimensions, if the old ones had no gaps."""
    order = sorted(range(len(before)), key=lambda d: (strides[d], before[d]))
    out, step, old = [0] * len(before), 1, 1
    for d in order:
        if before[d] > 1 and strides[d] != old:
            raise TraceError(f"'{call.module}' reads memory by strides ({call.name}), which cannot follow the cut.")
        out[d], step, old = step, step * after[d], old * before[d]
    return out


_NORMS = ("native_layer_norm", "_fused_rms_norm", "rms_norm")


def _from_input(call: Call, args: list[Any], kwargs: dict[str, Any], inputs: list[Shape | None], sizes: Sizes) -> None:
    """Normalised shapes, and the scale that attention has by default, from the shape of the input."""
    after = inputs[0] if inputs else None
    if after is None:
        return
    if call.name in _NORMS and isinstance(args[1], list):
        args[1] = list(after[len(after) - len(args[1]) :])
    elif call.name == "native_group_norm":
        args[3], args[4], args[5] = after[0], after[1], math.prod(after[2:])
    elif "scaled_dot_product" in call.name and kwargs.get("scale") is None:
        width = sizes.recorded[call.args[0].number][-1]
        if width != after[-1]:  # the scale of the original, whose other entries were zero
            kwargs["scale"] = 1 / math.sqrt(width)
