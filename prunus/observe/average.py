"""Means over all samples, of all batches and on all processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, distributed

from prunus.core import Groups


def parameters_of(groups: Groups) -> dict[str, Tensor]:
    """The parameters of the groups that a loss can be differentiated by, by name."""
    return {s.name: s.tensor for g in groups for s in g.slices if s.tensor.is_leaf and s.tensor.requires_grad}


def average(parameters: Mapping[str, Tensor], sums: Iterable[tuple[str, Tensor | None, int]]) -> dict[str, Tensor]:
    """The mean over all samples of what is summed over some: triples of a parameter's name, a sum, its samples.

    Samples are counted by parameter: a sum of 0 samples belongs to samples that are counted already; None is a zero.
    Added up in float64, returned in at least float32; on several processes the mean is over all of them.

    >>> average({"w": torch.zeros(2)}, [("w", torch.tensor([1.0, 3.0]), 2), ("w", torch.tensor([2.0, 0.0]), 1)])
    {'w': tensor([1., 1.])}
    """
    total = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in parameters.items()}
    samples = {name: torch.zeros(1, device=t.device, dtype=torch.float64) for name, t in parameters.items()}
    for name, part, size in sums:
        if part is not None:
            total[name] += part.detach()
        samples[name] += size
    if distributed.is_available() and distributed.is_initialized():
        for tensor in (*total.values(), *samples.values()):
            distributed.all_reduce(tensor)
    wide = {name: torch.promote_types(t.dtype, torch.float32) for name, t in parameters.items()}
    return {name: (sum_ / samples[name]).to(wide[name]) for name, sum_ in total.items()}
