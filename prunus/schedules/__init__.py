"""When?  Pure functions of the step: a schedule gives a value, a progress a number in [0, 1]."""

from prunus.schedules import progress
from prunus.schedules.progress import gradual
from prunus.schedules.values import (
    SCHEDULES,
    Schedule,
    constant,
    cosine,
    exponential,
    linear,
    multi_step,
    rewind,
    warmup,
)

__all__ = [
    "SCHEDULES",
    "Schedule",
    "constant",
    "cosine",
    "exponential",
    "gradual",
    "linear",
    "multi_step",
    "progress",
    "rewind",
    "warmup",
]
