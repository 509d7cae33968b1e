"""Multiply-adds of one operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

aten = torch.ops.aten


def _dot(a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    """Vector, or matrix times vector: one multiply-add an element of the left operand."""
    return 2 * math.prod(a)


def _addmv(_: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return _dot(a, b)


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    repeats = query[1] // max(key[1], 1)  # query heads that share a key head
    key, value = ((x[0], x[1] * repeats, *x[2:]) for x in (key, value))
    return sdpa_flop_count(query, key, value)


def _recurrent(x: Any, w_input: Any, w_hidden: Any, *args: Any, **kwargs: Any) -> int:
    """Every time step of every sample, x: (T, N, C), meets both matrices whole."""
    return 2 * x[0] * x[1] * (math.prod(w_input) + math.prod(w_hidden))


def _grouped(x: Any, weight: Any, *args: Any, **kwargs: Any) -> int:
    """Every row of x (tokens, in) meets one of the matrices (experts, in, out)."""
    return 2 * math.prod(x) * weight[-1]


def _trilinear(a: Any, b: Any, c: Any, *missing: Any, **kwargs: Any) -> int:
    """One multiply-add for every choice of an index in all dimensions that any of the three has."""
    size = [1] * (len(a) + len(missing[0]))
    for shape, without in zip((a, b, c), missing):
        for place, n in zip((d for d in range(len(size)) if d not in without), shape):
            size[place] = n
    return 2 * math.prod(size)


def _matrices(*args: Any, **kwargs: Any) -> int:
    """Matrix times matrix: of a sparse one, what it stores counts alone."""
    a, b = [x for x in args if isinstance(x, Tensor)][-2:]
    if b.layout is not torch.strided:
        a, b = b, a.mT
    stored = a.numel() if a.layout is torch.strided else a._nnz()
    return 2 * int(stored) * b.shape[-1]


_matrices._get_raw = True  # type: ignore[attr-defined]  # it is given tensors


# beside those of torch.utils.flop_counter; on shapes, in flops (half a multiply-add)
FORMULAS: dict[Any, Callable[..., int]] = {
    aten.mkldnn_rnn_layer: _recurrent,
    aten.dot: _dot,
    aten.mv: _dot,
    aten.addmv: _addmv,
    aten._trilinear: _trilinear,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}
FORMULAS |= dict.fromkeys((aten.mm, aten.addmm, aten._sparse_addmm), _matrices)
if hasattr(aten, "_grouped_mm"):
    FORMULAS[aten._grouped_mm] = _grouped


def multiply_adds(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    """Multiply-adds of one ATen call; 0 for an operator without a formula.

    >>> x = torch.zeros(2, 3)
    >>> multiply_adds(aten.mm.default, (x, x.t()), {}, x @ x.t())
    12.0
    """
    packet = func.overloadpacket
    if packet in FORMULAS and getattr(FORMULAS[packet], "_get_raw", False):
        return FORMULAS[packet](*args, **kwargs) / 2
    if packet in FORMULAS:
        shapes = tree_map_only(Tensor, lambda t: tuple(t.shape), (args, kwargs))
        return FORMULAS[packet](*shapes[0], **shapes[1]) / 2
    count: Any = flop_registry.get(packet)
    return count(*args, **kwargs, out_val=out) / 2 if count is not None else 0.0
