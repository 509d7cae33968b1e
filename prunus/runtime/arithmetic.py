"""Sums and products as nodes: of two values, of a value and numbers or one number a channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunus.runtime.graph import Node, Ref
from prunus.runtime.operators import Call, reads


def by_channel(call: Call, value: Any) -> Tensor | None:
    """A number, or a tensor that is the same for all samples and pixels, as a number a channel (C,); else None."""
    channels = call.shape[1]
    if isinstance(value, (int, float)):
        return torch.full((channels,), float(value), dtype=torch.float64)
    if not isinstance(value, Tensor) or value.dim() > len(call.shape):
        return None
    shape = [1] * (len(call.shape) - value.dim()) + list(value.shape)
    one_each = shape[1] in (1, channels) and all(n == 1 for i, n in enumerate(shape) if i != 1)
    return value.detach().double().reshape(-1).expand(channels) if one_each else None


def affine(call: Call, x: Any, scale: Any, shift: Any) -> Node | None:
    """scale x + shift, of numbers or one a channel."""
    if not isinstance(x, Ref) or len(call.shape) not in (2, 4) or call.shape_of(x) != call.shape:
        return None
    numbers = [by_channel(call, value) for value in (scale, shift)]
    if numbers[0] is None or numbers[1] is None:
        return None
    return call.node("affine", [x], scale=numbers[0], shift=numbers[1])


def _both(call: Call, kind: str, a: Any, b: Any) -> Node | None:
    """Of two values; the second may have one pixel, or one channel, for all."""
    if len(call.shape) != 4:
        return None
    if call.shape_of(a) != call.shape:
        a, b = b, a
    n, c, h, w = call.shape
    if call.shape_of(a) != call.shape or call.shape_of(b) not in (call.shape, (n, c, 1, 1), (n, 1, h, w)):
        return None
    if c > 1 and call.shape_of(b) == (n, 1, h, w) != (n, 1, 1, 1):
        b = call.before("pick", [b], call.shape, {"kept": [[0] * c, list(range(h)), list(range(w))]})
    return call.node(kind, [a, b]) if call.shape_of(b) in (call.shape, (n, c, 1, 1)) else None


@reads("mul")
def _mul(call: Call, a: Any, b: Any) -> Node | int | None:
    if isinstance(a, Ref) and isinstance(b, Ref):
        return _both(call, "mul", a, b)
    return affine(call, a, b, 0) if isinstance(a, Ref) else affine(call, b, a, 0)


@reads("div")
def _div(call: Call, a: Any, b: Any, **how: Any) -> Node | int | None:
    return None if isinstance(b, Ref) or how else affine(call, a, 1 / b, 0)


@reads("add")
def _add(call: Call, a: Any, b: Any, alpha: Any = 1) -> Node | int | None:
    if not isinstance(a, Ref):
        return affine(call, b, alpha, a)
    if not isinstance(b, Ref):
        return affine(call, a, 1, b if alpha == 1 else alpha * b)
    if alpha != 1 and len(call.shape) == 4:
        channels = call.shape_of(b)[1]
        b = call.before("affine", [b], call.shape_of(b), {})
        tensors = {"scale": torch.full((channels,), float(alpha)), "shift": torch.zeros(channels)}
        call.nodes[b].tensors = {name: t.double() for name, t in tensors.items()}
    return _both(call, "add", a, b)


@reads("sub")
def _sub(call: Call, a: Any, b: Any, alpha: Any = 1) -> Node | int | None:
    return _add(call, a, b, -alpha)


@reads("rsub")
def _rsub(call: Call, a: Any, b: Any, alpha: Any = 1) -> Node | int | None:
    return _add(call, b, a, -alpha)


@reads("neg")
def _neg(call: Call, x: Any) -> Node | int | None:
    return affine(call, x, -1, 0)


@reads("square", "pow")
def _square(call: Call, x: Any, power: Any = 2) -> Node | int | None:
    return _both(call, "mul", x, x) if isinstance(x, Ref) and isinstance(power, (int, float)) and power == 2 else None
