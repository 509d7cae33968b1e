"""Weights that a loss is differentiated by; means over all samples, of all batches and on all processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from prunus.core import Groups

Handles = Mapping[str, list[Tensor]]  # by name of a weight, the tensors of a graph that are that weight
Slopes = dict[str, Tensor | None]


def parameters_of(groups: Groups) -> dict[str, Tensor]:
    """The weights of the groups that a loss can be differentiated by, by name: parameters, and what is computed."""
    computed = groups.effective.numbers if groups.effective is not None else {}

    def fits(name: str, tensor: Tensor) -> bool:
        return (tensor.is_leaf and tensor.requires_grad) or name in computed

    return {s.name: s.tensor for g in groups for s in g.slices if fits(s.name, s.tensor)}


def slopes(value: Tensor | Sequence[Tensor], handles: Handles, **options: Any) -> Slopes:
    """The gradient of `value` by every weight, summed over the tensors that are that weight; None for no dependence.

    >>> w = torch.ones(2, requires_grad=True)
    >>> one, two = w * 1, w * 1                         # forward computes the weight twice
    >>> slopes((one * 2 + two * 3).sum(), {"w": [one, two]})
    {'w': tensor([5., 5.])}
    """
    found = iter(
        torch.autograd.grad(value, [t for of in handles.values() for t in of], allow_unused=True, **options)
        if any(handles.values())
        else ()
    )
    return {name: added([next(found) for _ in of]) for name, of in handles.items()}


def added(parts: list[Tensor | None]) -> Tensor | None:
    """The sum of what is there; None for nothing."""
    there = [part for part in parts if part is not None]
    return sum(there[1:], there[0]) if there else None


def average(parameters: Mapping[str, Tensor], sums: Iterable[tuple[str, Tensor | None, int]]) -> dict[str, Tensor]:
    """The mean over all samples of what is summed over some: triples of a parameter's name, a sum, its samples.

    Samples are counted by parameter: a sum of 0 samples belongs to samples that are counted already; None is a zero.
    Added up in float64, returned in at least float32; on several processes the mean is over all of them.  One of which
    no sample is known is absent.

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
    return {name: (sum_ / samples[name]).to(wide[name]) for name, sum_ in total.items() if samples[name]}
