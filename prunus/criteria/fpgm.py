"""Distance to the other filters of a layer."""

import torch
from torch import Tensor

from prunus.core import Group
from prunus.criteria.base import criterion

PAPER = "He et al., Filter Pruning via Geometric Median for Deep CNNs Acceleration, CVPR 2019"


@criterion("fpgm", kind="group", roles={"out", "depthwise"}, normalize="max", paper=PAPER)
def fpgm(group: Group) -> Tensor:
    r"""Sum of the distances to all other filters, $s_j = \sum_k \lVert f_j - f_k \rVert_2$ (eq. 4).

    $f_j$ is the filter of a unit: the rows of all layers that make it, each layer's divided by their mean norm where
    there are several.  Filters that others can replace score low; of filters that are all the same every one does, so
    that a large cut can take them all.  Euclidean distances in float64, not squared ones.
    """
    return distances(group).sum(1)


@criterion("fpgm-greedy", kind="group", roles={"out", "depthwise"}, paper=PAPER)
def fpgm_greedy(group: Group) -> Tensor:
    r"""Place in the order in which filters go when the distances (eq. 4) are summed anew after each: 1/n, 2/n ... 1.

    Of filters that are all the same one stays longest.  The last two are as far from each other: both score 1.
    It ranks within a group: a global ranking takes the same fraction of every group.
    """
    apart = distances(group)
    left, place = apart.sum(1), torch.ones(group.units, dtype=torch.float64)
    for position in range(1, group.units - 1):
        gone = left.argmin()
        place[gone] = position / group.units
        left = left - apart[gone]
        left[gone] = torch.inf
    return place


def distances(group: Group) -> Tensor:
    """The distances between all filters of a group: ``(units, units)`` in float64."""
    rows = [s.weight.double() for s in group.slices]  # (units, fan) each
    if len(rows) > 1:
        rows = [r / r.norm(dim=1).mean().clamp(min=torch.finfo(r.dtype).tiny) for r in rows]
    joined = torch.cat([r.cpu() for r in rows], 1)
    return torch.cdist(joined, joined, compute_mode="donot_use_mm_for_euclid_dist")
