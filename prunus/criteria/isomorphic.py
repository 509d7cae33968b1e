"""One ranking for all groups of the same shape of computation."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from prunus.core import Group, Groups
from prunus.criteria.normalize import normalizers, rank

PAPER = "Fang et al., Isomorphic Pruning for Vision Models, ECCV 2024"


@normalizers.register("isomorphic", of="network", paper=PAPER)
def isomorphic(groups: Groups, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    r"""The fraction of all units of the same kind that score at most as much, $r_u / \sum_{G \sim G(u)} n_G$.

    Two groups are of the same kind, $G \sim G'$, where the same operators take their units in the same roles
    (`signatures`): the inner channels of all blocks, the heads of all attentions.  Units of one kind are compared as
    they score, those of two kinds are not: a global ranking removes the same fraction of every kind.  Ties by order of
    the groups, then of the units.  ``{group id: (units,)}`` -> the same, no dimension (section 3.2).

    >>> import prunus
    >>> block = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    >>> groups = prunus.trace(block, torch.zeros(1, 2))
    >>> scores = {"0": torch.tensor([1.0, 4.0]), "1": torch.tensor([3.0, 9.0])}
    >>> {id: ranks.tolist() for id, ranks in isomorphic(groups, scores).items()}
    {'0': [0.25, 0.75], '1': [0.5, 1.0]}
    """
    kinds: dict[Any, list[str]] = {}
    for group, kind in zip(groups, signatures(groups)):
        if group.id in scores:
            kinds.setdefault(kind, []).append(group.id)
    ranked: dict[str, Tensor] = {}
    for ids in kinds.values():
        sizes = [len(scores[id]) for id in ids]
        ranked.update(zip(ids, rank(torch.cat([scores[id] for id in ids])).split(sizes)))
    return {id: ranked[id] for id in scores}


def signatures(groups: Groups) -> list[Any]:
    """What is the same for groups of the same kind: of every slice its role and how many dimensions the tensor has, the
    operators that multiply or normalise over the units, each as often as there are, and whether units come in parts.
    """
    family = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor([g.units for g in groups]))
    members = [set(family[axis[axis >= 0]].tolist()) for axis in groups.axes]  # of every axis, whose units it has
    names: list[list[str]] = [[] for _ in groups]
    for op in groups.operators:
        touched = {*(op.macs.axes if op.macs is not None else ()), *op.over, *op.contracted}
        for number in set(chain.from_iterable(members[axis] for axis in touched)):
            names[number].append(op.name)
    return [(_slices(group), tuple(sorted(of)), group.parts > 1) for group, of in zip(groups, names)]


def _slices(group: Group) -> tuple[tuple[str, int], ...]:
    return tuple(sorted((s.role, s.tensor.dim()) for s in group.slices))
