"""Filters by their norm over the inputs that stay."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.allocators.base import Problem, allocators
from prunus.allocators.uniform import uniform

PAPER = "Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017"


@allocators.register("greedy-l1", paper=PAPER)
def greedy_l1(problem: Problem) -> Tensor:
    r"""The same fraction of every group: the least L1 norms over inputs not removed before.

    $s_j = \sum_{c \in \text{kept}} \sum_{uv} |W_{jcuv}|$, group after group in the order of execution; of groups made
    by several layers, the mean of each layer's norms over their mean.  The scores given only say which groups may be
    cut; with criterion ``l1`` and ``uniform`` it is the paper's independent way, where all inputs count.  Returns the
    keep mask ``(units,)``.
    """
    keep = uniform(problem)  # what it costs depends on how many units stay, not on which
    left: dict[str, Tensor] = {}  # absolute weights, zero where the input goes
    for group in (g for g in problem.groups.seen() if g.id in problem.scores):
        rows = slice(group.offset, group.offset + group.units)
        gone = int((~keep[rows]).sum()) // group.parts
        norms = []
        for s in group.with_role("out", "depthwise"):
            found = s.view(left.get(s.name, s.tensor.detach().double().abs().cpu())).sum(1)
            norms.append(found / found.mean().clamp(min=torch.finfo(found.dtype).tiny))
        if gone and norms:
            order = torch.stack(norms).mean(0).reshape(group.parts, -1).argsort(dim=1, stable=True)
            stays = torch.ones(group.parts, group.count, dtype=torch.bool)
            keep[rows] = stays.scatter_(1, order[:, :gone], False).flatten()
        for s in group.with_role("in"):
            weight = left.setdefault(s.name, s.tensor.detach().double().abs().cpu())
            left[s.name] = weight.index_fill(s.dim, s.index[~keep[rows]].flatten(), 0)
    return keep
