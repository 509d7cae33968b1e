"""Weight-level sparsity: weights as units, hard masks, and what makes up for the weights that are gone."""

from prunus.masks.hold import hold_, release_
from prunus.masks.mask import Masked, mask_
from prunus.masks.solve import repairs
from prunus.masks.tensors import Tensors, tensors

__all__ = ["Masked", "Tensors", "hold_", "mask_", "release_", "repairs", "tensors"]
