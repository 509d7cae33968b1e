"""What the features before the classifier need."""

from torch import Tensor

from prunus.core import Group
from prunus.core.slices import ROLES
from prunus.criteria.base import criterion

PAPER = "Yu et al., NISP: Pruning Networks using Neuron Importance Score Propagation, CVPR 2018"


@criterion("nisp", kind="group", roles=ROLES, needs={"propagated"}, normalize="rank", paper=PAPER)
def nisp(group: Group) -> Tensor:
    r"""Importance propagated from the last features, $s_l = |W_{l+1}|^T s_{l+1}$ (eq. 17-20), without labels.

    The features that the last layer reads are ranked by Inf-FS; the sum over positions, then the mean over images.
    It is read where layers read the unit.  Scores sum to 1 in every layer, so that they rank within a group: whatever
    the allocator, each group loses the same fraction (``rank``), as in the paper.
    """
    scores: Tensor = group.statistic("propagated").mean(0)
    return scores
