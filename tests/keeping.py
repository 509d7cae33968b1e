"""Keep masks for tests."""

from __future__ import annotations

import torch
from torch import Tensor

import prunus


def random_keep(groups: prunus.Groups, seed: int, share: float = 0.6) -> Tensor:
    """About `share` of the units of every group, never none and never all; as many of every part of a group.

    Groups that the model's code keeps in proportion stay whole.
    """
    generator = torch.Generator().manual_seed(seed)
    keep = torch.ones(groups.units, dtype=torch.bool)
    tied = {id for ids in groups.proportions for id in ids}
    for group in (g for g in groups if g.id not in tied):
        many = int((torch.rand(group.count, generator=generator) < share).sum())
        many = min(max(many, 1), max(group.count - 1, 1))
        for part in range(group.parts):
            rows = torch.zeros(group.count, dtype=torch.bool)
            rows[torch.randperm(group.count, generator=generator)[:many]] = True
            start = group.offset + part * group.count
            keep[start : start + group.count] = rows
    return keep
