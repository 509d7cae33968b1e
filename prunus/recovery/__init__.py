"""What repairs accuracy after a cut: least squares, batch norms, distillation, rates for fine-tuning."""

from prunus.recovery.batchnorm import Recalibrated, recalibrate_
from prunus.recovery.distillation import distill
from prunus.recovery.protocols import cosine, last, rewind
from prunus.recovery.repair import METHODS, Repaired, Targets, method_of, repair_, targets

__all__ = [
    "METHODS",
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
