"""Filters of a cluster are trained into one (C-SGD)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from prunus.core.checks import Kind, check_arguments, is_number
from prunus.criteria.clustering import MAKES, beside, clusters
from prunus.regularizers.base import Gradient, Regularizer, State, regularizers

PAPER = "Ding et al., Centripetal SGD for Pruning Very Deep Convolutional Networks, CVPR 2019"
ON_VECTORS = 0.1  # of the strength: biases, scales and shifts


@regularizers.register("centripetal", paper=PAPER)
def centripetal(keep: float = 0.5, strength: float = 3e-3) -> Regularizer:
    r"""The filters of every cluster get the same loss gradient and are drawn to their mean (equation 5).

    .. math:: \nabla_{F_j} = \frac{1}{|H|} \sum_{k \in H} \frac{\partial L}{\partial F_k}
        + \varepsilon \, \bigl(F_j - \frac{1}{|H|} \sum_{k \in H} F_k\bigr),

    for the clusters $H$ that k-means finds, when training begins, of what makes the units of each group: as many as are
    to stay.  Where layers are coupled by a sum they are clustered together.  Weight decay is the optimizer's own.  Once
    the units of a cluster are equal, ``prune_(criterion="agglomerative", merge=True)`` keeps one of each and loses
    nothing.  Clusters may reach over the parts of a group (of grouped convolutions, heads); merging does not.

    Args:
        keep: how many clusters, as a share of the units of a group.
        strength: $\varepsilon$; a tenth of it for biases and for scales and shifts of norms.

    Raises: `InputError` unless 0 < `keep` < 1 and `strength` is a finite number >= 0.

    >>> import torch
    >>> made = centripetal(0.5, strength=0.5)
    >>> merge, penalty = made.rules(made.start([torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 9.0]])]))
    >>> merge([torch.tensor([[2.0, 4.0], [0.0, 0.0], [1.0, 1.0]])])[0]
    tensor([[1., 2.],
            [1., 2.],
            [1., 1.]])
    >>> penalty([torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 9.0]])])[0]
    tensor([[-0.5000,  0.0000],
            [ 0.5000,  0.0000],
            [ 0.0000,  0.0000]])
    """
    check_arguments(locals(), keep=Kind("a share of the units between 0 and 1", lambda v: is_number(v) and 0 < v < 1))

    def start(weights: Sequence[Tensor]) -> State:
        return {"labels": clusters(beside(weights), math.ceil(keep * len(weights[0])))[0]}

    def rules(state: State) -> tuple[Gradient, Gradient]:
        labels = state["labels"]

        def means(rows: Sequence[Tensor]) -> list[Tensor]:
            return [mean_of(r, labels.to(r.device)) for r in rows]

        def penalty(weights: Sequence[Tensor]) -> list[Tensor]:
            each = (strength if w.shape[1] > 1 else strength * ON_VECTORS for w in weights)
            return [eps * (w - mean) for eps, w, mean in zip(each, weights, means(weights), strict=True)]

        return means, penalty

    return Regularizer(frozenset(MAKES), kind="group", start=start, rules=rules)


def mean_of(rows: Tensor, labels: Tensor) -> Tensor:
    """The mean of every row's cluster: ``(units, fan)`` and labels ``(units,)`` -> ``(units, fan)``."""
    counts = labels.bincount()
    sums = rows.new_zeros(len(counts), rows.shape[1]).index_add_(0, labels, rows)
    return (sums / counts[:, None].to(rows))[labels]
