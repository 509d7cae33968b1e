"""In which precision to train on this machine."""

from __future__ import annotations

from pathlib import Path

import torch

from prunus.core.checks import a_word, check_arguments, instance
from prunus.core.errors import InputError, did_you_mean

PRECISIONS = ("auto", "32", "bf16-mixed")


def choose_precision(precision: str, device: torch.device) -> str:
    """``"32"`` or ``"bf16-mixed"``: a `precision` of ``"auto"`` is the latter where hardware multiplies bfloat16.

    That is a CUDA device with bfloat16, or a CPU with AMX tiles (a ResNet step takes half the time or less there).  The
    choice depends on the machine alone, never on a timing, so that a resumed run makes the same one.  float16 is not
    offered: it would need a loss scaler, and bfloat16 needs none.

    Raises: `InputError` for any other name.

    >>> choose_precision("32", torch.device("cpu"))
    '32'
    """
    check_arguments(locals(), precision=a_word, device=instance("a torch.device", torch.device))
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise InputError(f"precision={precision!r}.{did_you_mean(str(precision), PRECISIONS)} Known: {known}.")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16-mixed" if torch.cuda.get_device_capability(device) >= (8, 0) else "32"
    return "bf16-mixed" if device.type == "cpu" and _amx_bf16() else "32"


def _amx_bf16() -> bool:
    """Whether the processor has bfloat16 tile instructions and the kernel lets this process use them."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0]
    except (OSError, IndexError):
        return False
    return "amx_bf16" in flags.split() and torch.cpu._is_amx_tile_supported()
