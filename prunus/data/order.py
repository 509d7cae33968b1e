"""Randomness as a pure function of (seed, epoch, sample): the same on every rank, in every batch and resumed run."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ORDER, SHIFT_Y, SHIFT_X, FLIP, HOLD_OUT, LIMIT = range(6)  #: independent streams


def hashed(index: Tensor, *key: int) -> np.ndarray:
    r"""A 64-bit hash of every sample index under `key`, :math:`h_i = m(k + (i + 1) \phi)` with SplitMix64's mixer m.

    index: (N,) int64 -> (N,) uint64.  Steele, Lea, Flood 2014, Fast Splittable Pseudorandom Number Generators.
    """
    state = np.zeros(1, np.uint64)
    for part in key:
        state = _mix(state * GOLDEN + np.array([part & (2**64 - 1)], np.uint64) + GOLDEN)
    return _mix(state + (index.numpy().astype(np.uint64) + np.uint64(1)) * GOLDEN)


def integers(index: Tensor, below: int, *key: int) -> Tensor:
    """One integer in [0, below) for every sample: (N,) int64 -> (N,) int64.

    >>> integers(torch.tensor([7, 3]), 9, 0, 1)[0] == integers(torch.arange(8), 9, 0, 1)[7]
    tensor(True)
    """
    return torch.from_numpy(((hashed(index, *key) >> np.uint64(40)) % np.uint64(below)).astype(np.int64))


def shuffled(count: int, *key: int) -> Tensor:
    """The numbers 0 ... count - 1 in the order of their hash: (count,) int64."""
    return torch.from_numpy(np.argsort(hashed(torch.arange(count), *key), kind="stable"))


def stratified(labels: Tensor, count: int, *key: int) -> Tensor:
    """Rows of `count` samples drawn evenly over the classes (each within one of its share), ascending.

    labels: (N,) int64 -> (count,) int64.

    >>> stratified(torch.tensor([0, 0, 1, 1]), 2, 5).div(2, rounding_mode="floor")
    tensor([0, 1])
    """
    order = shuffled(len(labels), *key)
    order = order[torch.argsort(labels[order], stable=True)]
    places = torch.arange(count) * len(labels) // max(count, 1) + len(labels) // max(2 * count, 1)
    return order[places].sort().values


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
