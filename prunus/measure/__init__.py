"""What does a network cost?  Parameters, multiply-adds, bytes, milliseconds."""

from prunus.core.backends import backends, form_for
from prunus.core.inference import Inference, inference_form
from prunus.measure.counting import Macs, macs, params, size_on_disk, state_size
from prunus.measure.timing import Latency, compare_latency, key, latency, race

__all__ = [
    "Inference",
    "Latency",
    "Macs",
    "backends",
    "compare_latency",
    "form_for",
    "inference_form",
    "key",
    "latency",
    "macs",
    "params",
    "race",
    "size_on_disk",
    "state_size",
]
