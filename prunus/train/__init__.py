"""The training loop of the recipes: on Lightning Fabric, resumable to the bit, distributed under torchrun."""

from prunus.train.evaluation import evaluate
from prunus.train.fit import fit
from prunus.train.history import Epoch, History
from prunus.train.precision import choose_precision

__all__ = ["Epoch", "History", "choose_precision", "evaluate", "fit"]
