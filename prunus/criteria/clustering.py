"""One representative of every cluster of filters: agglomerative clustering and k-means."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prunus.core import Group
from prunus.criteria.base import criterion

MAKES = {"out", "depthwise", "bias", "norm_scale", "norm_shift"}
HIERARCHY = "Ayinde & Zurada, Building Efficient ConvNets using Redundant Feature Pruning, 2018 (arXiv 1802.07653)"
KMEANS = "Ding et al., Centripetal SGD for Pruning Very Deep Convolutional Networks, CVPR 2019: its clusters"


@criterion("agglomerative", kind="group", roles=MAKES, paper=HIERARCHY)
def agglomerative(group: Group) -> Tensor:
    r"""Cosine distance at which a unit's cluster joins one with a stronger filter; complete linkage.

    Whatever the number of units that stay, they are one of every cluster, the one of the largest norm, and all of a
    cluster lie within the score of the first that stays: one threshold for the whole network.  A filter of zeros
    scores 0, the last one left 2.  `prunus.recovery.merge_` gives its weight to the one that stays.
    """
    return of_parts(group, joins)


@criterion("kmeans", kind="group", roles=MAKES, normalize="rank", paper=KMEANS)
def kmeans(group: Group) -> Tensor:
    r"""Whether a unit represents its cluster when k-means halves the group, again and again.

    At half of the units (a quarter, ...) those that stay are one of each of $k = \lceil n/2 \rceil$ clusters
    ($\lceil k/2 \rceil$, ...), the one of the largest norm; between, those nearest to their centroid go first.
    Without a draw: the first centroids are the filter farthest from the mean and then, one after the other, those
    farthest from all chosen.  Filters of zeros score 0.  It ranks within a group: whatever the
    allocator, each group loses the same fraction (``rank``).
    """
    return of_parts(group, halvings)


def filters(group: Group) -> Tensor:
    """What makes every unit, in float64: filters, biases and norms side by side, each over its mean norm."""
    return beside([s.weight for s in group.slices])


def beside(weights: Sequence[Tensor]) -> Tensor:
    """Rows of several weights, each ``(units, fan)``, side by side, each over its mean norm, in float64."""
    rows = [weight.detach().double().cpu() for weight in weights]
    return torch.cat([r / r.norm(dim=1).mean().clamp(min=torch.finfo(r.dtype).tiny) for r in rows], 1)


def of_parts(group: Group, scores: Callable[[Tensor], Tensor]) -> Tensor:
    """`scores` of what makes the units, part by part, where filters of zeros score 0: ``(units,)``."""
    found = []
    for rows in filters(group).reshape(group.parts, group.count, -1):
        alive = rows.norm(dim=1) > 0
        part = torch.zeros(len(rows), dtype=torch.float64)
        if bool(alive.any()):
            part[alive] = scores(rows[alive])
        found.append(part)
    return torch.cat(found)


def joins(rows: Tensor) -> Tensor:
    """The height at which each row's cluster joins one of a larger norm, 2 for the last: ``(n, d)`` -> ``(n,)``.

    >>> rows = torch.tensor([[1., 0.], [2., 0.], [0., 3.]], dtype=torch.float64)
    >>> joins(rows)
    tensor([0., 1., 2.], dtype=torch.float64)
    """
    from scipy.cluster.hierarchy import linkage

    norms = rows.norm(dim=1)
    heights = torch.full((len(rows),), 2.0, dtype=torch.float64)
    if len(rows) == 1:
        return heights
    unit = rows / norms[:, None]
    above = torch.triu_indices(len(rows), len(rows), 1)
    apart = (1 - unit @ unit.mT)[above[0], above[1]].clamp(min=0)
    stays = list(range(len(rows)))  # of every cluster; those that joins make are numbered on
    for a, b, height, _ in linkage(apart.numpy(), "complete").tolist():
        weaker, stronger = sorted((stays[int(a)], stays[int(b)]), key=lambda u: float(norms[u]))
        heights[weaker] = height
        stays.append(stronger)
    return heights


def halvings(rows: Tensor) -> Tensor:
    """How often each row stays when k-means halves those left: ``(n, d)`` -> ``(n,)``, from 1."""
    norms, scores = rows.norm(dim=1), torch.zeros(len(rows), dtype=torch.float64)
    left, level = torch.arange(len(rows)), 1.0
    while len(left) > 1:
        label, centroids = clusters(rows[left], -(-len(left) // 2))
        distance = (rows[left] - centroids[label]).norm(dim=1)
        scores[left] = level + 0.9 * distance / distance.max().clamp(min=1e-300)
        order = norms[left].argsort(descending=True, stable=True)
        first = torch.full((len(centroids),), len(left)).scatter_reduce(
            0, label[order], torch.arange(len(left)), "amin"
        )
        left, level = left[order[first]], level + 1
    scores[left] = level
    return scores


def clusters(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """k-means (Lloyd) from the rows farthest from each other: labels ``(n,)`` and at most `k` centroids."""
    from sklearn.cluster import KMeans

    chosen = [int((rows - rows.mean(0)).norm(dim=1).argmax())]
    distance = (rows - rows[chosen[0]]).norm(dim=1)
    least = 1e-9 * rows.norm(dim=1).max()  # equal rows are one centroid
    while len(chosen) < k and float(distance.max()) > least:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, (rows - rows[chosen[-1]]).norm(dim=1))
    fitted = KMeans(len(chosen), init=rows[chosen].numpy(), n_init=1).fit(rows.numpy())
    return torch.from_numpy(fitted.labels_).long(), torch.from_numpy(fitted.cluster_centers_)
