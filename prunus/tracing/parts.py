"""Parts: heads and the like, whose units may be chosen for each by itself as long as all keep equally many.

The labels say of a dimension of heads times head dimensions that index (i, j) survives iff head i and head dimension j
do: the same j in every head.  Where nothing in the network sees j without i, another choice of j in every head is as
good, and only the number has to be the same.  Then the units of the group are the pairs (i, j), one part a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prunus.core import Groups, Operator, TensorAxes
from prunus.tracing.labels import Atoms

if TYPE_CHECKING:
    from prunus.tracing.build import Axes


@dataclass(frozen=True, eq=False)
class Numbering:
    """Of every unit its group and its number within its part; of every group how many units a part has."""

    group: NDArray[np.int64]
    place: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, groups: Groups) -> Numbering:
        """The numbering of traced groups."""
        places = [np.tile(np.arange(g.count), g.parts) for g in groups]
        return cls(
            np.repeat(np.arange(len(groups)), [g.units for g in groups]),
            np.concatenate([np.zeros(0, np.int64), *places]),
            np.array([g.count for g in groups], dtype=np.int64),
        )

    @classmethod
    def plain(cls, sizes: Sequence[int]) -> Numbering:
        """The numbering of groups of one part."""
        return cls(
            np.repeat(np.arange(len(sizes)), sizes),
            np.concatenate([np.zeros(0, np.int64), *(np.arange(n) for n in sizes)]),
            np.array(sizes, dtype=np.int64),
        )


def row_blocks(matrix: Atoms, numbering: Numbering) -> Iterator[tuple[int, tuple[int, ...]]]:
    """The rows of a dimension in blocks of rows whose units are of the same groups: (times, groups).

    A block that holds every combination of the units of its groups equally often has that number of `times`; 0 for one
    that does not.
    """
    if not len(matrix):
        return
    family = np.where(matrix < 0, -1, numbering.group[np.maximum(matrix, 0)])  # (n, k)
    code = np.zeros(len(matrix), dtype=np.int64)
    for c in range(matrix.shape[1]):
        code = code * (len(numbering.counts) + 1) + family[:, c] + 1
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    for block, row in enumerate(first.tolist()):
        rows, pattern = matrix[inverse == block], family[row]
        columns = np.flatnonzero(pattern >= 0)
        members = tuple(int(m) for m in pattern[columns])
        if len(set(members)) < len(members):
            yield 0, members
            continue
        if not members:
            yield len(rows), ()
            continue
        combination = np.zeros(len(rows), dtype=np.int64)
        for c in columns.tolist():
            combination = combination * numbering.counts[pattern[c]] + numbering.place[rows[:, c]]
        _, often = np.unique(combination, return_counts=True)
        whole = len(often) == int(np.prod(numbering.counts[list(members)])) and often.min() == often.max()
        yield (int(often[0]) if whole else 0), members


def free_choices(
    matrices: Sequence[Atoms],
    sizes: Sequence[int],
    tensors: Mapping[str, TensorAxes],
    operators: Sequence[Operator],
) -> dict[int, int]:
    """Families whose units may be chosen for every unit of another family by itself: ``{family: that other one}``.

    In parameters the two must always stand in one dimension, every combination of them; in every other tensor that has
    a dimension of the one there is one of the other; and no operator computes over it but sums of products.
    """
    numbering = Numbering.plain(sizes)
    blocks = [list(row_blocks(matrix, numbering)) for matrix in matrices]
    within: dict[int, set[int]] = {}  # family -> the families that it stands with in parameters; itself: stands alone
    for axis in {a for tensor in tensors.values() for a in tensor.axes if a is not None}:
        for times, members in blocks[axis]:
            for m in members:
                fits = times and len(members) == 2
                within.setdefault(m, set()).update(set(members) - {m} if fits else {m})
    of_axis = [{m for _, members in block for m in members} for block in blocks]
    found = {}
    for family, others in within.items():
        other = next(iter(others))
        if len(others) == 1 and other != family:
            found[family] = other
    for a, b in [(a, b) for a, b in found.items() if found.get(b) == a and a < b]:  # either may choose: the faster one
        found.pop(_slower(a, b, matrices, of_axis, numbering))
    for matrix, present in zip(matrices, of_axis):  # the choices of the parts lie after each other, never interleaved
        for w, h in [(w, h) for w, h in found.items() if present >= {w, h}]:
            if not _one_after_the_other(matrix, h, int(numbering.counts[w]), numbering):
                found.pop(w)
    if not found:
        return {}
    for op in operators:
        for dims in (*op.axes, *op.operands):
            cut = [axis for axis in dims if axis is not None]
            present = set().union(*(of_axis[axis] for axis in cut))
            for axis in cut:
                for family in of_axis[axis] & found.keys():
                    alone = of_axis[axis] == {family}
                    both = of_axis[axis] == {family, found[family]}
                    if found[family] not in present or not (alone or both) or (alone and axis in op.over):
                        found.pop(family)
    return {w: h for w, h in found.items() if h not in found}


def _one_after_the_other(matrix: Atoms, family: int, count: int, numbering: Numbering) -> bool:
    """Whether a unit of `family` keeps `count` rows or more, one below the other, wherever it stands."""
    mine = np.where((matrix >= 0) & (numbering.group[np.maximum(matrix, 0)] == family), matrix, -1).max(1)
    runs = 1 + int((np.diff(mine[mine >= 0]) != 0).sum())
    return runs * count <= int((mine >= 0).sum())


def _slower(a: int, b: int, matrices: Sequence[Atoms], of_axis: Sequence[set[int]], numbering: Numbering) -> int:
    """Which of two families changes less often from row to row where they stand together: the one of whole heads."""
    matrix = next(m for m, members in zip(matrices, of_axis) if members >= {a, b})
    family = np.where(matrix < 0, -1, numbering.group[np.maximum(matrix, 0)])
    changes = [int((np.diff(np.where(family == f, matrix, 0).sum(1)) != 0).sum()) for f in (a, b)]
    return a if changes[0] <= changes[1] else b


def spread(axes: Axes, families: list[NDArray[np.int64]], ragged: Mapping[int, int]) -> list[int]:
    """Give the families in `ragged` a unit for every combination with their partner; returns the parts of every family.

    The matrices of `axes` are renumbered.  Where a dimension holds such a family alone, the units of the first part
    stand for all: they tell how many rows are kept.
    """
    sizes = np.array([len(f) for f in families], dtype=np.int64)
    before = np.concatenate([[0], np.cumsum(sizes)])
    parts = [len(families[ragged[f]]) if f in ragged else 1 for f in range(len(families))]
    if not ragged:
        return parts
    after = np.concatenate([[0], np.cumsum(sizes * np.array(parts))])
    owner = np.repeat(np.arange(len(families)), sizes)
    for a, matrix in enumerate(axes.matrices):
        family = np.where(matrix < 0, -1, owner[np.maximum(matrix, 0)])
        place = matrix - before[np.maximum(family, 0)]
        new = np.where(matrix < 0, matrix, after[np.maximum(family, 0)] + place)
        for w, h in ragged.items():
            mine, theirs = family == w, family == h
            if not mine.any():
                continue
            head = np.where(theirs, place, 0).sum(1, keepdims=True)  # a row holds one unit of the partner at most
            both = mine & theirs.any(1, keepdims=True)
            new = np.where(both, new + head * sizes[w], new)
            if not both.any():
                axes.counted.add(a)
        axes.matrices[a] = new
    for w in ragged:
        families[w] = np.tile(families[w], parts[w])
    return parts
