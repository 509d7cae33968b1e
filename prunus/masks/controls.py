"""Sanity controls: what is left of a method when its masks, or the weights under them, are made random."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.core import Plan
from prunus.core.checks import check_arguments
from prunus.core.undo import all_or_nothing
from prunus.masks.tensors import Tensors


def shuffle(groups: Tensors, plan: Plan, seed: int = 0) -> Plan:
    """The plan with the mask of every tensor shuffled within the tensor: as many stay, elsewhere.

    What a method gains over this, it gains by which weights of a tensor it keeps.  Parts of N:M patterns, and rows that
    must stay even, are shuffled within themselves.  Orders are drawn from `seed`.

    Source: Frankle et al., Pruning Neural Networks at Initialization: Why Are We Missing the Mark?, ICLR 2021.

    >>> import prunus
    >>> groups = prunus.tensors(torch.nn.Sequential(torch.nn.Linear(8, 8)))
    >>> plan = prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(density=0.25))
    >>> moved = shuffle(groups, plan)
    >>> int(moved.masks["0.weight"].keep.sum()), moved == plan
    (16, False)
    """
    check_arguments(locals())
    keep = groups.mask(plan)
    generator = torch.Generator().manual_seed(seed)
    for g in groups:
        rows = keep[g.offset : g.offset + g.units].reshape(g.parts, -1)
        keep[g.offset : g.offset + g.units] = rows.gather(1, _orders(rows, generator)).flatten()
    return groups.plan(keep)


@torch.no_grad()
def redraw_(groups: Tensors, seed: int = 0) -> None:
    """Draw the weights of every tensor again from the weights it has: they are shuffled, in place.

    Initial weights of a tensor are drawn alike, so that this is another initialisation by the network's own rule.
    Orders are drawn from `seed`.

    >>> import prunus
    >>> net = torch.nn.Linear(8, 8)
    >>> before = net.weight.clone()
    >>> redraw_(prunus.tensors(torch.nn.Sequential(net)))
    >>> torch.equal(before, net.weight), torch.equal(before.flatten().sort()[0], net.weight.flatten().sort()[0])
    (False, True)
    """
    check_arguments(locals())
    generator = torch.Generator().manual_seed(seed)
    with all_or_nothing(*(g.slices[0].tensor for g in groups)):
        for g in groups:
            tensor = g.slices[0].tensor
            order = torch.randperm(tensor.numel(), generator=generator)
            tensor.copy_(tensor.flatten()[order.to(tensor.device)].view_as(tensor))


def _orders(rows: Tensor, generator: torch.Generator) -> Tensor:
    """A random order of every row."""
    return torch.rand(rows.shape, generator=generator).argsort(1)
