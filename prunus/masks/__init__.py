"""Weight-level sparsity: weights as units, masks of every rule, and what makes up for the weights that are gone."""

from prunus.masks import during as _during  # noqa: F401  (every file registers its method)
from prunus.masks.at_init import FAMOUS, Choice, at_init, balanced, choose
from prunus.masks.collapse import Collapse, collapse, safe_sparsity
from prunus.masks.controls import redraw_, shuffle
from prunus.masks.hold import hold_, release_
from prunus.masks.mask import Masked, mask_
from prunus.masks.moment import Method, Moment, methods
from prunus.masks.rewind import lottery_
from prunus.masks.rules import RULES, Rule
from prunus.masks.solve import repairs
from prunus.masks.tensors import Tensors, tensors
from prunus.masks.training import MaskPruner

__all__ = [
    "FAMOUS",
    "RULES",
    "Choice",
    "Collapse",
    "MaskPruner",
    "Masked",
    "Method",
    "Moment",
    "Rule",
    "Tensors",
    "at_init",
    "balanced",
    "choose",
    "collapse",
    "hold_",
    "lottery_",
    "mask_",
    "methods",
    "redraw_",
    "release_",
    "repairs",
    "safe_sparsity",
    "shuffle",
    "tensors",
]
