"""What repairs accuracy after a cut: least squares, batch norms, distillation, rates for fine-tuning."""

from prunus.recovery.batchnorm import Recalibrated, recalibrate_
from prunus.recovery.blocks import Rebuilt, block_targets, rebuild_
from prunus.recovery.distillation import distill
from prunus.recovery.methods import METHODS, method_of, prepare
from prunus.recovery.protocols import cosine, last, rewind
from prunus.recovery.repair import Repaired, Targets, repair_, targets

__all__ = [
    "METHODS",
    "Rebuilt",
    "block_targets",
    "prepare",
    "rebuild_",
    "Recalibrated",
    "Repaired",
    "Targets",
    "cosine",
    "distill",
    "last",
    "method_of",
    "recalibrate_",
    "repair_",
    "rewind",
    "targets",
]
