"""Weight-level sparsity: weights as units, masks of every rule, and what makes up for the weights that are gone."""

from prunus.masks import during as _during  # noqa: F401  (every file registers its method)
from prunus.masks.hold import hold_, release_
from prunus.masks.mask import Masked, mask_
from prunus.masks.moment import Method, Moment, methods
from prunus.masks.rules import RULES, Rule
from prunus.masks.solve import repairs
from prunus.masks.tensors import Tensors, tensors
from prunus.masks.training import MaskPruner

__all__ = [
    "RULES",
    "MaskPruner",
    "Masked",
    "Method",
    "Moment",
    "Rule",
    "Tensors",
    "hold_",
    "mask_",
    "methods",
    "release_",
    "repairs",
    "tensors",
]
