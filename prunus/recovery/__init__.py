"""What repairs accuracy after a cut: batch-norm statistics, distillation, and learning rates for fine-tuning."""

from prunus.recovery.batchnorm import Recalibrated, recalibrate_
from prunus.recovery.distillation import distill
from prunus.recovery.protocols import cosine, last, rewind

__all__ = ["Recalibrated", "cosine", "distill", "last", "recalibrate_", "rewind"]
