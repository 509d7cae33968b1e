"""Removed units held at zero while training goes on: the mask that a cut later makes real."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunus.core import GroupPlan, Groups, InputError, Plan
from prunus.core.checks import check_arguments
from prunus.core.undo import keep_values
from prunus.core.words import a_mask


class Gap(NamedTuple):
    """The removed indices ``(n,)`` of one dimension of one parameter."""

    parameter: Tensor
    dim: int
    removed: Tensor


def gaps(groups: Groups, keep: Tensor) -> tuple[Gap, ...]:
    """Where the removed units' own parameters and their consumers' columns lie, given the keep mask ``(units,)``.

    >>> import prunus
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    >>> groups = prunus.trace(net, torch.zeros(1, 2))
    >>> [(tuple(g.parameter.shape), g.dim, g.removed.tolist()) for g in gaps(groups, torch.tensor([True, False, True]))]
    [((3, 2), 0, [1]), ((3,), 0, [1]), ((1, 3), 1, [1])]
    """
    check_arguments(locals(), keep=a_mask)
    found: dict[tuple[int, int], list[Tensor]] = {}
    tensors = {}
    for group in groups:
        gone = ~keep[group.offset : group.offset + group.units]
        for s in group.slices if bool(gone.any()) else ():
            if isinstance(s.tensor, nn.Parameter) and s.tensor.is_floating_point():
                tensors[id(s.tensor)] = s.tensor
                found.setdefault((id(s.tensor), s.dim), []).append(s.index[gone].reshape(-1))
    return tuple(
        Gap(tensors[key], dim, torch.cat(index).unique().to(tensors[key].device)) for (key, dim), index in found.items()
    )


def kept_units(groups: Groups, keep: Tensor) -> Plan:
    """The plan that says of every group which units stay, and nothing else: what `Groups.mask` reads.

    Args: keep: a boolean ``(units,)`` over all groups in order.

    Raises: `InputError` for a mask of another shape.
    """
    check_arguments(locals(), keep=a_mask)
    if keep.shape != (groups.units,):
        raise InputError(f"a keep mask of these groups has shape ({groups.units},); given {tuple(keep.shape)}.")
    rows = {g.id: keep[g.offset : g.offset + g.units].nonzero().flatten().tolist() for g in groups}
    return Plan({g.id: GroupPlan(g.units, tuple(rows[g.id])) for g in groups})


@torch.no_grad()
def silence_(holes: Iterable[Gap], optimizers: Iterable[Optimizer] = ()) -> None:
    r"""Set to zero, where `holes` are, the weights and every tensor of the optimizers' state that has their shape.

    With the mask :math:`m` of a parameter (True = keep), :math:`w \leftarrow w \odot m` and, for momentum and moments,
    :math:`v \leftarrow v \odot m`; not a number times zero is zero here.
    """
    for hole in holes:
        keep_values(hole.parameter)
        hole.parameter.index_fill_(hole.dim, hole.removed, 0)
        for optimizer in optimizers:
            if hole.parameter in optimizer.state:  # a look-up would make an entry
                for value in optimizer.state[hole.parameter].values():
                    if isinstance(value, Tensor) and value.shape == hole.parameter.shape:
                        keep_values(value)
                        value.index_fill_(hole.dim, hole.removed, 0)


@torch.no_grad()
def silence_gradients_(holes: Iterable[Gap]) -> None:
    """Set the gradients of the removed units, the `holes` of `gaps`, to zero, so that no optimizer learns from them."""
    for hole in holes:
        if hole.parameter.grad is not None:
            hole.parameter.grad.index_fill_(hole.dim, hole.removed, 0)
