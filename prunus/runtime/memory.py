"""Buffers aligned to vectors, and kernels called on them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

import numpy as np

ALIGN = 64  # bytes: a line of the cache, and the widest vector
SIGNATURE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def most() -> int:
    """Bytes that a network may take: what the machine has."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 1 << 34


def buffer(size: int) -> np.ndarray:
    """`size` zero bytes that begin on a line of the cache."""
    raw = np.zeros(size + ALIGN, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGN
    return raw[start : start + size]


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy of an array that begins on a line of the cache, of at least one line."""
    copy = buffer(max(ALIGN, array.nbytes))
    copy[: array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return copy


def slots(values: Sequence[int | float | np.ndarray]) -> np.ndarray:
    """The arguments of a kernel: addresses of arrays, integers, and floats in the low half of their slot."""
    table = buffer(8 * len(values))
    for i, value in enumerate(values):
        if isinstance(value, float):
            table[8 * i : 8 * i + 4].view(np.float32)[0] = value
        else:
            number = value.ctypes.data if isinstance(value, np.ndarray) else value
            table[8 * i : 8 * i + 8].view(np.int64)[0] = number
    return table


def call(address: int, arguments: np.ndarray, thread: int = 0, threads: int = 1) -> None:
    """Runs one kernel."""
    SIGNATURE(address)(arguments.ctypes.data, thread, threads)
