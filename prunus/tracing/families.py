"""Which units are of one kind: those that are part of the same dimensions, equally often."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

from prunus.tracing.labels import NONE, Atoms
from prunus.tracing.tracer import Tracer

PRODUCING = {"out": 0, "depthwise": 1, "index": 1, "norm_scale": 2, "bias": 3}  # what a group is named after


def families_of(tracer: Tracer, places: dict[tuple[str, int], Atoms]) -> tuple[list[NDArray[np.int64]], Atoms]:
    """Units that are part of the same dimensions, equally often, form a family.

    Returns the atoms of every family in order of first appearance, and the flat number of every atom (-1: not a unit).
    """
    rng = np.random.default_rng(0)
    signature = np.zeros(tracer.labels.count, dtype=np.uint64)
    first = np.full(tracer.labels.count, np.iinfo(np.int64).max)
    order = sorted(places, key=lambda p: rank(tracer, p))
    position = 0
    for place in order:
        atoms = places[place].ravel()
        atoms, at, counts = np.unique(atoms[atoms >= 0], return_index=True, return_counts=True)
        tags = rng.integers(1, 1 << 62, dtype=np.uint64)
        signature[atoms] += tags * (2 * counts.astype(np.uint64) + 1)
        first[atoms] = np.minimum(first[atoms], position + at)
        position += places[place].size
    for place in order:
        _tell_factors_apart(places[place], signature, rng.integers(1, 1 << 62, dtype=np.uint64))
    units = np.flatnonzero(signature)
    _, family = np.unique(signature[units], return_inverse=True)
    families = [units[family == f] for f in range(family.max() + 1)] if units.size else []
    families = [f[np.argsort(first[f], kind="stable")] for f in families]
    families.sort(key=lambda f: first[f].min())
    number = np.full(tracer.labels.count, NONE)
    offset = 0
    for f in families:
        number[f] = np.arange(offset, offset + len(f))
        offset += len(f)
    return families, number


def _tell_factors_apart(rows: Atoms, signature: NDArray[np.uint64], tag: np.uint64) -> None:
    """Eight heads of eight dimensions appear equally often: atoms that share a row are of different families."""
    if rows.shape[1] < 2:
        return
    kinds = np.where(rows < 0, 0, signature[np.maximum(rows, 0)])
    for a in range(rows.shape[1]):
        for b in range(a + 1, rows.shape[1]):
            alike = (rows[:, a] >= 0) & (kinds[:, a] == kinds[:, b])
            if alike.any():
                signature[np.unique(rows[alike, b])] += tag * np.uint64(b)


def rank(tracer: Tracer, place: tuple[str, int]) -> tuple[int, int, bool, str, int]:
    """Producing dimensions first, then the order of execution, parameters before buffers."""
    role, call = tracer.roles.get(place, ("other", len(tracer.calls)))
    return (PRODUCING.get(role, 4), call, not isinstance(tracer.tensors[place[0]], nn.Parameter), *place)
