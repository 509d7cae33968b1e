"""Tensors with many zeros in few bytes: which elements are there, and their values."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

from prunus.core import FileError

VALUES, BITS, GAPS = "#values", "#bits", "#gaps"
LONG = 255  # a byte of gaps that is this large goes on in the next one
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
    out, shapes = {}, {}
    for name, tensor in tensors.items():
        there = tensor.reshape(-1).view(INTEGERS[tensor.element_size()]) != 0 if tensor.is_floating_point() else None
        if there is None or tensor.numel() == 0:
            out[name] = tensor
            continue
        places = there.nonzero().flatten()
        gaps, bits = _gaps(places), _bits(there)
        where = {name + GAPS: gaps} if len(gaps) < len(bits) else {name + BITS: bits}
        values = tensor.reshape(-1)[places]
        if values.nbytes + sum(t.nbytes for t in where.values()) >= tensor.nbytes:
            out[name] = tensor
            continue
        out |= {name + VALUES: values, **where}
        shapes[name] = list(tensor.shape)
    return out, json.dumps(shapes) if shapes else ""


def unpack(packed: Mapping[str, Tensor], shapes: str) -> dict[str, Tensor]:
    """What was given to `pack`; raises `FileError` when the parts do not fit each other."""
    try:
        wanted = {str(name): torch.Size(shape) for name, shape in json.loads(shapes).items()} if shapes else {}
        parts = {name + end for name in wanted for end in (VALUES, BITS, GAPS)}
        out = {name: tensor for name, tensor in packed.items() if name not in parts}
        for name, shape in wanted.items():
            values = packed[name + VALUES]
            gaps = packed.get(name + GAPS)
            places = _from_bits(packed[name + BITS]) if gaps is None else _from_gaps(gaps)
            flat = torch.zeros(shape.numel(), dtype=values.dtype)
            flat[places] = values
            out[name] = flat.view(shape)
    except (ValueError, KeyError, IndexError, RuntimeError, TypeError, AttributeError) as error:
        raise FileError(f"its compressed tensors do not fit each other ({type(error).__name__}: {error}).") from None
    return out


def _bits(there: Tensor) -> Tensor:
    """A bit an element, the first one highest."""
    rows = torch.cat([there, there.new_zeros(-len(there) % 8)]).reshape(-1, 8).byte()
    return (rows << torch.arange(7, -1, -1, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def _from_bits(bits: Tensor) -> Tensor:
    rows = bits[:, None] >> torch.arange(7, -1, -1, dtype=torch.uint8) & 1
    return rows.flatten().nonzero().flatten()


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
