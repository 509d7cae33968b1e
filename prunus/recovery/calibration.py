"""Calibration data as one batch, and how much of it fits in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from prunus.core import Groups, InputError, Inputs
from prunus.core.callbacks import each
from prunus.observe.base import check_finite, inputs_of


def gather(batches: Iterable[Any], limit: int | None = None) -> Inputs:
    """The inputs of all batches as one, of at most `limit` samples."""
    parts: list[list[Any]] = []
    spec, seen = None, 0
    for batch in each(batches):
        inputs = inputs_of(batch)
        leaves, spec = tree_flatten((inputs.args, dict(inputs.kwargs)))
        check_finite(leaves, len(parts))
        parts.append(leaves)
        seen += inputs.batch
        if limit is not None and seen >= limit:
            break
    if spec is None:
        raise InputError("there is no calibration batch; give data= at least one.")
    joined = [torch.cat(same) if isinstance(same[0], Tensor) and same[0].dim() else same[0] for same in zip(*parts)]
    args, kwargs = tree_unflatten(joined, spec)
    inputs = Inputs(args, kwargs)
    return inputs if limit is None else first(inputs, limit)


def bytes_of_a_sample(groups: Groups) -> int:
    """The most bytes of activations that are alive at once in a forward of one sample, in float32."""
    last = {tensor: i for i, op in enumerate(groups.operators) for tensor in op.reads}
    sizes: dict[int, int] = {}
    most = 0
    for i, op in enumerate(groups.operators):
        for tensor, shape in zip(op.writes, op.shapes):
            sizes[tensor] = 4 * torch.Size(shape).numel()
        most = max(most, sum(sizes.values()))
        sizes = {tensor: size for tensor, size in sizes.items() if last.get(tensor, -1) > i}
    return most // max(groups.inputs.batch, 1)


def first(inputs: Inputs, most: int) -> Inputs:
    """The first `most` samples."""
    batch = inputs.batch
    return inputs.map(lambda t: t[:most] if t.dim() and t.shape[0] == batch else t)
