"""What repairs accuracy after a cut: least squares, batch norms, distillation, rates for fine-tuning."""

from prunus.recovery.batchnorm import Recalibrated, recalibrate_
from prunus.recovery.bias import Lost, compensate_, lost
from prunus.recovery.blocks import Rebuilt, block_targets, rebuild_
from prunus.recovery.distillation import distill
from prunus.recovery.merge import Merged, merge_
from prunus.recovery.methods import METHODS, method_of, prepare
from prunus.recovery.protocols import cosine, last, rewind
from prunus.recovery.repair import Repaired, repair_
from prunus.recovery.targets import Targets, targets

__all__ = [
    "METHODS",
    "Lost",
    "compensate_",
    "lost",
    "Rebuilt",
    "block_targets",
    "prepare",
    "rebuild_",
    "Merged",
    "Recalibrated",
    "Repaired",
    "Targets",
    "cosine",
    "distill",
    "last",
    "method_of",
    "merge_",
    "recalibrate_",
    "repair_",
    "rewind",
    "targets",
]
