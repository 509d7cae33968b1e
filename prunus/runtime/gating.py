"""Gates as operators of torch, so that an exported network says where its gates are and how they decide.

A gate reads saliencies (N, C) and gives a mask (N, C): what every channel of a map is multiplied by, zero where it is
off.  While `as_operators` holds, gates call these operators; otherwise they are never run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor

from prunus.runtime.graph import Node
from prunus.runtime.operators import Call, reads

RULES = ("reaches", "positive", "largest")
_asked: ContextVar[bool] = ContextVar("as_operators", default=False)


def decide(saliency: Tensor, rule: str, number: float | Tensor, floor: int, scales: bool) -> Tensor:
    r"""The mask ``(N, C)`` of saliencies ``(N, C)``.

    On are channels whose saliency ``reaches`` the number, is ``positive``, or is among the `number` ``largest``; where
    those are fewer than `floor`, the `floor` largest, too.  A channel that is on is multiplied by its saliency where
    the gate `scales`, else by one; saliencies of a gate that scales are not negative.

    >>> decide(torch.tensor([[.1, .5, .3]]), "reaches", .3, 1, True)
    tensor([[0.0000, 0.5000, 0.3000]])
    >>> decide(torch.tensor([[.1, .5, .3]]), "reaches", .9, 1, False)
    tensor([[0., 1., 0.]])
    """
    factor = saliency if scales else torch.ones_like(saliency)
    if rule == "largest":
        on = _among(saliency, max(int(number), floor))
    else:
        on = saliency > 0 if rule == "positive" else saliency >= number
        if floor:
            short = ((on & (factor != 0)).sum(1) < floor)[:, None]
            on = on | (short & _among(saliency, floor))
    return factor * on


def largest(saliency: Tensor, many: int) -> Tensor:
    """The channels of the `many` largest saliencies, ``(N, many)``; of equals the first, as in ONNX.

    >>> largest(torch.tensor([[1., 2., 2., 2.]]), 2)
    tensor([[1, 2]])
    """
    if torch.compiler.is_exporting():
        return saliency.topk(many, dim=1).indices
    return saliency.sort(dim=1, descending=True, stable=True).indices[:, :many]  # topk takes any of equals


def _among(saliency: Tensor, many: int) -> Tensor:
    return torch.zeros_like(saliency, dtype=torch.bool).scatter(1, largest(saliency, many), True)


@contextmanager
def as_operators() -> Iterator[None]:
    """Gates of maps of two dimensions are operators of their own in what is exported meanwhile."""
    before = _asked.set(True)
    try:
        yield
    finally:
        _asked.reset(before)


def asked() -> bool:
    """Whether a gate should call the operators."""
    return _asked.get()


@cache
def _operators() -> Any:
    library = torch.library

    @library.custom_op("prunus::seen", mutates_args=())
    def seen(x: Tensor, absolute: bool) -> Tensor:
        return (x.abs() if absolute else x).mean((2, 3))

    @library.custom_op("prunus::gate", mutates_args=())
    def gate(saliency: Tensor, number: Tensor | None, count: int, rule: str, floor: int, scales: bool) -> Tensor:
        return decide(saliency, rule, float(count if number is None else number), floor, scales)

    @library.custom_op("prunus::masked", mutates_args=())
    def masked(y: Tensor, mask: Tensor) -> Tensor:
        return y * mask[:, :, None, None]

    seen.register_fake(lambda x, absolute: x.new_empty(x.shape[:2]))
    gate.register_fake(lambda saliency, *_: torch.empty_like(saliency))
    masked.register_fake(lambda y, mask: torch.empty_like(y))
    return torch.ops.prunus


def seen(x: Tensor, absolute: bool) -> Tensor:
    """The mean of every channel, or of its absolute values: ``(N, C, H, W) -> (N, C)``."""
    return _operators().seen(x, absolute)


def gate(saliency: Tensor, number: Tensor | int, rule: str, floor: int, scales: bool) -> Tensor:
    """`decide`, whose number may be a tensor that the network holds."""
    held, count = (number, 0) if isinstance(number, Tensor) else (None, number)
    return _operators().gate(saliency, held, count, rule, floor, scales)


def masked(y: Tensor, mask: Tensor) -> Tensor:
    """Every channel times its mask: ``(N, C, H, W)``, ``(N, C)``."""
    return _operators().masked(y, mask)


@reads("prunus.seen.default")
def _seen(call: Call, x: Any, absolute: bool) -> Node | int | None:
    positive = call.nodes[x].numbers.get("low", -1.0) >= 0
    return call.node("mean", [x], {"absolute": True} if absolute and not positive else {})


@reads("prunus.gate.default")
def _gate(call: Call, saliency: Any, number: Any, count: int, rule: str, floor: int, scales: bool) -> Node | int | None:
    numbers = {"rule": rule, "number": float(count if number is None else number), "floor": floor, "scales": scales}
    return call.node("gate", [saliency], numbers)


@reads("prunus.masked.default")
def _masked(call: Call, y: Any, mask: Any) -> Node | int | None:
    return call.node("mul", [y, mask])
