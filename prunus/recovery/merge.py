r"""Merging: what layers read of a removed unit, they read from the kept one that is most like it.

With :math:`f_u` what a layer reads of a unit, by all that makes it (`prunus.recovery.alike`: filters, with bias and
batch norm folded in, times what lies in series, beside what is added),

.. math:: W_{:,k} \mathrel{+}= \sum_{h \to k} t_h W_{:,h}, \qquad
    t_h = \max(0, f_h^T f_k / f_k^T f_k), \quad k = \arg\min_k \lVert f_h - t_h f_k \rVert ,

with a factor for every layer that reads, and the distance summed over them.  Units that are equal are merged without a
change of the function; so are positive multiples of each other, by one factor in all that is added up, where ReLU,
pools, norms by running statistics, scales and depthwise convolutions lie between: factors in series multiply.
It changes the weights before the cut, and so comes before its proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.core import Group, Groups, Plan
from prunus.core.checks import check_arguments
from prunus.core.undo import all_or_nothing, keep_values
from prunus.recovery.alike import Likeness, Read


@dataclass(frozen=True, eq=False)
class Merged:
    """What `merge_` did: how many removed units were merged, in how many groups, and what is to be known of it.

    Attributes:
        units: how many removed units were added to others.
        groups: how many groups they are of.
        notes: groups that were left alone, and why.
    """

    units: int
    groups: int
    notes: tuple[str, ...]


@torch.no_grad()
def merge_(model: nn.Module, groups: Groups, plan: Plan) -> Merged:
    """Before `shrink_`: add what layers read of every unit that `plan` removes to what they read of a kept one.

    The kept unit is that of the same part which is nearest in direction; where none points the same way, nothing is
    added, and the unit is only removed.  Groups over which a norm or a softmax runs, or sums of products of
    activations, are left out (a note says so): there a merged pair is not two units.

    Args:
        model: changed in place: the weights that read units of which some are merged.
        groups: what `prunus.trace` returned of `model`.
        plan: what is kept.

    Raises: `InputError` when the plan is of another network.

    Source: Srinivas & Babu, "Data-free Parameter Pruning for Deep Neural Networks", BMVC 2015; Ding et al.,
    "Centripetal SGD", CVPR 2019 (equal filters).

    >>> import prunus
    >>> net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[1.], [3.]])), net[2].weight.data.copy_(torch.tensor([[5., 7.]]))
    >>> groups = prunus.trace(net, torch.ones(1, 1))
    >>> plan = groups.plan(torch.tensor([True, False]))
    >>> merge_(net, groups, plan).units, net[2].weight.data                                     # 5 + 3 * 7
    (1, tensor([[26.,  7.]]))
    """
    check_arguments(locals())
    groups = groups.bind(model)
    keep, seen = groups.mask(plan), groups.seen()
    found, notes = [], []
    for group in groups:
        kept = keep[group.offset : group.offset + group.units]
        if bool(kept.all()) or not group.with_role("in"):
            continue
        if group.computes("in"):
            notes.append(f"group '{group.id}' was not merged: forward computes what reads it from parameters")
            continue
        if _runs_over(groups, group):
            notes.append(f"group '{group.id}' was not merged: a norm, softmax or product runs over its units")
            continue
        read = Read(model, seen, seen[group.id], kept)
        if len(read.readers) < len({(id(s.tensor), s.dim) for s in group.with_role("in")}):
            notes.append(f"group '{group.id}' was not merged: by which operators its units are read is not known")
            continue
        found.append((read, *nearest([one for _, one in read.readers], group.units // group.parts)))
    with all_or_nothing(model):
        for read, target, factors in found:
            for (s, _), factor in zip(read.readers, factors, strict=True):
                columns = s.weight.double().cpu()
                added = factor[:, None] * columns[read.pairs[0]]
                keep_values(s.tensor)
                s.tensor.add_(s.scatter(torch.zeros_like(columns).index_add_(0, target, added)).to(s.tensor))
        merged = [int((factors > 0).any(0).sum()) for _, _, factors in found]
        return Merged(sum(merged), sum(n > 0 for n in merged), tuple(notes))


def nearest(read: Sequence[Likeness], part: int) -> tuple[Tensor, Tensor]:
    """For every removed unit the kept one that it is nearest to, and the factors, ``(readers, removed)``.

    Args:
        read: what layers read of the units, as one channel each; part: how many units are a part of the group.

    >>> pairs = torch.tensor([2]), torch.tensor([0, 1])
    >>> nearest([Likeness.of(pairs, torch.tensor([[[1., 0.]], [[0., 1.]], [[0., 4.]]]))], 3)
    (tensor([1]), tensor([[4.]]))
    """
    source, stays = read[0].pairs
    same = (source // part)[:, None] == stays // part
    products = torch.cat([one.products for one in read]).clamp(min=0) * same  # (readers, removed, kept)
    squares = torch.cat([one.squares[:, stays] for one in read]).clamp(min=torch.finfo(products.dtype).tiny)
    best = (products.square() / squares[:, None]).sum(0).argmax(1)
    factors = products.gather(2, best.expand(len(read), -1)[..., None])[..., 0] / squares[:, best]
    return stays[best], factors


def _runs_over(groups: Groups, group: Group) -> bool:
    """Whether an operator computes over the units of a group together, or sums products of activations over them."""
    for op in groups.operators:
        for axis in (*op.over, *op.contracted):
            of = groups.axes[axis]
            if bool(((of >= group.offset) & (of < group.offset + group.units)).any()):
                return True
    return False
