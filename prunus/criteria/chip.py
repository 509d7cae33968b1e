"""What only one unit's feature maps hold."""

from torch import Tensor

from prunus.core import Group
from prunus.core.slices import ROLES
from prunus.criteria.base import criterion

PAPER = "Sui et al., CHIP: CHannel Independence-based Pruning for Compact Neural Networks, NeurIPS 2021"


@criterion("chip", kind="group", roles=ROLES, needs={"independence"}, normalize="max", paper=PAPER)
def chip(group: Group) -> Tensor:
    r"""Channel independence, $\frac1N \sum_n \lVert A_n \rVert_* - \lVert A_{n,(u=0)} \rVert_*$ (eq. 3), unlabelled.

    $A_n$ is ``(units, positions)``, the maps of image $n$.  A unit whose maps others have as well scores low, however
    strong it is.  The paper averages over 640 images; one decomposition a unit and image.
    """
    scores: Tensor = group.statistic("independence").mean(0)
    return scores
