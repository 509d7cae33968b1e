"""Tensors with many zeros in few bytes: which elements are there, and their values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunus.core import FileError

VALUES, BITS, GAPS = "#values", "#bits", "#gaps"
LONG = 255  # a byte of gaps that is this large goes on in the next one
ZEROS = 1 << 24  # elements, over all tensors of a file, that gaps may leave out behind their last value
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def pack(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    r"""Every tensor as it is, or as its nonzero values and where they are, whichever is least; and the shapes as JSON.

    Where they are is a bit an element (``NAME#bits``), or a byte a nonzero value with the number of zeros before it
    (``NAME#gaps``; 255: go on with the next byte), which is less below a density of 1/8.  Nothing is lost: only
    elements whose bits are all zero are left out.

    >>> packed, shapes = pack({"w": torch.eye(64)})
    >>> {name: tuple(t.shape) for name, t in packed.items()}, shapes
    ({'w#values': (64,), 'w#gaps': (64,)}, '{"w": [64, 64]}')
    >>> torch.equal(unpack(packed, shapes)["w"], torch.eye(64))
    True
    """
    out, shapes, silent = {}, {}, 0
    for name, tensor in tensors.items():
        there = tensor.reshape(-1).view(INTEGERS[tensor.element_size()]) != 0 if tensor.is_floating_point() else None
        if there is None or tensor.numel() == 0:
            out[name] = tensor
            continue
        places = there.nonzero().flatten()
        gaps, bits = _gaps(places), _bits(there)
        behind = _behind(tensor.numel(), gaps)
        short = len(gaps) < len(bits) and silent + behind <= ZEROS  # else `unpack` would take it for a trap
        silent += behind if short else 0
        where = {name + GAPS: gaps} if short else {name + BITS: bits}
        values = tensor.reshape(-1)[places]
        if values.nbytes + sum(t.nbytes for t in where.values()) >= tensor.nbytes:
            out[name] = tensor
            continue
        out |= {name + VALUES: values, **where}
        shapes[name] = list(tensor.shape)
    return out, json.dumps(shapes) if shapes else ""


def unpack(packed: Mapping[str, Tensor], shapes: str) -> dict[str, Tensor]:
    """What was given to `pack`; raises `FileError` when the parts do not fit each other."""
    if not shapes:
        return dict(packed)
    try:
        wanted = {str(name): _shape(shape) for name, shape in json.loads(shapes).items()}
        _check_sizes(packed, wanted)
        parts = {name + end for name in wanted for end in (VALUES, BITS, GAPS)}
        out = {name: tensor for name, tensor in packed.items() if name not in parts}
        for name, shape in wanted.items():
            values, gaps, bits = packed[name + VALUES].flatten(), packed.get(name + GAPS), packed.get(name + BITS)
            flat = torch.zeros(math.prod(shape), dtype=values.dtype)
            raw, new = (t.view(INTEGERS[t.element_size()]) for t in (flat, values))  # also of 8 bits
            if gaps is not None:
                raw[_from_gaps(gaps)] = new
            elif bits is not None:
                _put(raw, _from_bits(bits)[: len(raw)], new)
            out[name] = flat.view(shape)
    except (ValueError, KeyError, IndexError, RuntimeError, TypeError, AttributeError, RecursionError) as error:
        raise FileError(f"its compressed tensors do not fit each other ({type(error).__name__}: {error}).") from None
    return out


def _shape(sizes: Any) -> tuple[int, ...]:
    if not isinstance(sizes, list) or any(type(n) is not int or n < 0 for n in sizes):
        raise ValueError(f"{str(sizes)[:80]} is not a shape")
    return tuple(sizes)


def _check_sizes(packed: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise `ValueError`, before anything is allocated, where the shapes promise more than the parts can hold."""
    total = 0
    for name, shape in wanted.items():
        gaps, bits, count = packed.get(name + GAPS), packed.get(name + BITS), math.prod(shape)
        where = gaps if bits is None else bits
        if where is None or (gaps is None) == (bits is None) or where.dtype != torch.uint8 or where.dim() != 1:
            raise ValueError(f"'{name}' has no list of places")
        if bits is not None and len(bits) != -(-count // 8):
            raise ValueError(f"'{name}' of shape {shape} has {len(bits)} bytes of bits")
        total += 0 if gaps is None else _behind(count, gaps)
    if total > ZEROS:
        raise ValueError(f"{total} elements are zeros that the file does not hold, at most {ZEROS} may be")


def _behind(count: int, gaps: Tensor) -> int:
    """At least so many of `count` elements are zeros behind the last value, which take no byte."""
    return max(count - (LONG + 1) * len(gaps), 0)


def _bits(there: Tensor) -> Tensor:
    """A bit an element, the first one highest."""
    rows = torch.cat([there, there.new_zeros(-len(there) % 8)]).reshape(-1, 8).byte()
    return (rows << torch.arange(7, -1, -1, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def _from_bits(bits: Tensor) -> Tensor:
    """A boolean an element."""
    return (bits[:, None] >> torch.arange(7, -1, -1, dtype=torch.uint8) & 1).flatten().bool()


def _put(flat: Tensor, there: Tensor, values: Tensor) -> None:
    if int(there.sum()) != len(values):
        raise ValueError(f"{int(there.sum())} places for {len(values)} values")
    flat.masked_scatter_(there, values)


def _gaps(places: Tensor) -> Tensor:
    """How many zeros lie before every place and after the last one, in bytes."""
    gaps = torch.diff(places, prepend=places.new_full((1,), -1)) - 1
    ends = (gaps // LONG + 1).cumsum(0) - 1
    out = torch.full((int(ends[-1]) + 1 if len(ends) else 0,), LONG, dtype=torch.uint8)
    out[ends] = (gaps % LONG).to(torch.uint8)
    return out


def _from_gaps(gaps: Tensor) -> Tensor:
    if len(gaps) and int(gaps[-1]) == LONG:
        raise ValueError("the last gap does not end")
    ends = (gaps != LONG).nonzero().flatten()
    return gaps.long().cumsum(0)[ends] + torch.arange(len(ends))
