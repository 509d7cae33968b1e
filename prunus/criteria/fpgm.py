"""Distance to the other filters of a layer."""

import torch
from torch import Tensor

from prunus.core import Group
from prunus.criteria.base import criterion

PAPER = "He et al., Filter Pruning via Geometric Median for Deep CNNs Acceleration, CVPR 2019"
BY_NORM = 0.1  # of the filters of a layer


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


@criterion("fpgm-mix", kind="group", roles={"out", "depthwise"}, paper=PAPER)
def fpgm_mix(group: Group) -> Tensor:
    r"""Place in the order in which filters go: first the tenth with the smallest norms, then by distance: 1/n ... 1.

    The distances (eq. 4) are summed over the filters that are left of the first step.  A cut of 40 % of a layer takes
    10 % by norm and 30 % by distance, as in the paper (FPGM-mix, section 4.2).
    """
    filters = rows_of(group)
    first = filters.norm(dim=1).argsort(stable=True)[: int(BY_NORM * group.units)]
    left = torch.ones(group.units, dtype=torch.bool)
    left[first] = False
    rest = left.nonzero().flatten()
    order = torch.cat([first, rest[distances(group)[rest][:, rest].sum(1).argsort(stable=True)]])
    place = torch.empty(group.units, dtype=torch.float64)
    place[order] = torch.arange(1, group.units + 1, dtype=torch.float64) / group.units
    return place


def distances(group: Group) -> Tensor:
    """The distances between all filters of a group: ``(units, units)`` in float64."""
    filters = rows_of(group)
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist")


def rows_of(group: Group) -> Tensor:
    """The filter of every unit ``(units, fan)``, each layer's divided by its mean norm where there are several."""
    rows = [s.weight.double() for s in group.slices]  # (units, fan) each
    if len(rows) > 1:
        rows = [r / r.norm(dim=1).mean().clamp(min=torch.finfo(r.dtype).tiny) for r in rows]
    return torch.cat([r.cpu() for r in rows], 1)
