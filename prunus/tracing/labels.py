"""Which units does every index of a dimension depend on?  The algebra of labels.

An *atom* is an integer: something that may be removed.  A labelled dimension of size n is an ``(n, k)`` matrix of
atoms, -1 for "none"; index i survives iff **all** atoms of row i survive.  Atoms are unified by union-find.  An atom
may be *refined* into the conjunction of two others, ``l := h and w``: so heads, head dimensions, convolution groups and
channel shuffles come out by themselves when a dimension is split.  A *fixed* atom always survives; it carries the
reason.

Everything is vectorised over atoms: there is no Python loop over channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Atoms = NDArray[np.int64]
NONE = -1
DEEPEST = 16  # refinements of refinements that a network can ask for


class Labels:
    """Atoms with their unions, refinements and reasons to be fixed."""

    def __init__(self) -> None:
        self.count = 0
        self.refined = False  # whether any atom ever was
        # the last entry of each is what NONE, which counts from the end, reads: no atom, no parts, no reason
        self.parent = np.append(np.arange(1023), NONE)
        self.parts = np.full((1024, 2), NONE, dtype=np.int64)  # of a root: the two atoms it is the conjunction of
        self.why = np.zeros(1024, dtype=np.int64)  # of a root: 0 = free, else 1 + the number of its reason
        self.reasons: list[str] = []

    # ---- atoms -------------------------------------------------------------------------------------------------

    def new(self, n: int) -> Atoms:
        """`n` fresh atoms."""
        while self.count + n >= len(self.parent):
            size = len(self.parent)
            self.parent = np.concatenate([self.parent[:-1], np.arange(size - 1, 2 * size - 1), [NONE]])
            self.parts = np.concatenate([self.parts, np.full((size, 2), NONE, dtype=np.int64)])
            self.why = np.concatenate([self.why, np.zeros(size, dtype=np.int64)])
        self.count += n
        return np.arange(self.count - n, self.count)

    def find(self, atoms: Atoms) -> Atoms:
        """The root of every atom; -1 stays -1."""
        out = self.parent[atoms]
        while True:
            up = self.parent[out]
            if (up == out).all():
                break
            out = up
            self.parent[atoms] = out  # path compression
        return out

    def fix(self, atoms: Atoms, reason: str) -> None:
        """Atoms that must survive, and the parts of those that are conjunctions."""
        if reason not in self.reasons:
            self.reasons.append(reason)
        self._fix(np.asarray(atoms).ravel(), self.reasons.index(reason) + 1)

    def _fix(self, atoms: Atoms, why: int | Atoms) -> None:
        while atoms.size:
            whys = np.broadcast_to(why, atoms.shape)[atoms >= 0]
            roots = self.find(atoms[atoms >= 0])
            free = self.why[roots] == 0
            roots, whys = roots[free], whys[free]
            self.why[roots] = whys
            has = self.parts[roots, 0] >= 0
            atoms, why = self.parts[roots[has]].ravel(), np.repeat(whys[has], 2)

    def union(self, a: Atoms, b: Atoms) -> None:
        """Atoms that live and die together; one that meets "none" is fixed."""
        a, b = np.asarray(a).ravel(), np.asarray(b).ravel()
        none_a, none_b = a < 0, b < 0
        if none_a.any() or none_b.any():
            for lone, atoms in ((none_b & ~none_a, a), (none_a & ~none_b, b)):
                if lone.any():
                    self.fix(atoms[lone], "it meets something that cannot be cut")
            both = ~(none_a | none_b)
            a, b = a[both], b[both]
        while a.size:
            a, b = self.find(a), self.find(b)
            differ = a != b
            if not differ.any():
                break
            low, high = np.minimum(a, b)[differ], np.maximum(a, b)[differ]
            rising = (high[1:] > high[:-1]).all()  # the channels of two tensors, mostly: every one meets one other
            child, first = (high, slice(None)) if rising else np.unique(high, return_index=True)
            self.parent[child] = low[first]
            a, b = self._inherit(child)
            if not rising:
                a, b = np.concatenate([low, a]), np.concatenate([high, b])

    def _inherit(self, child: Atoms) -> tuple[Atoms, Atoms]:
        """Roots take over reasons and refinements of atoms just put under them; returns pairs still to unite."""
        root = self.find(child)
        whys = self.why[child]
        self._fix(root[whys > 0], whys[whys > 0])
        if not self.refined:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        fixed_root = self.why[root]
        has = self.parts[child, 0] >= 0
        late = has & (fixed_root > 0)
        self._fix(self.parts[child[late]].ravel(), np.repeat(fixed_root[late], 2))
        root, parts = root[has], self.parts[child[has]]
        if not root.size:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        bare = self.parts[root, 0] < 0
        taker, first = np.unique(root[bare], return_index=True)
        self.parts[taker] = parts[bare][first]
        return self.parts[root].ravel(), parts.ravel()

    def define(self, atoms: Atoms, rows: Atoms) -> None:
        """Refine: ``atoms[i] := rows[i, 0] and rows[i, 1] and ...``, atoms (m,) roots without parts, rows (m, k)."""
        if rows.shape[1] == 1:
            return self.union(atoms, rows[:, 0])
        if np.isin(atoms, rows).any():  # a unit defined by itself: nothing of it can be cut
            self.fix(np.concatenate([atoms, rows.ravel()]), "its sizes are coupled in a circle")
            return None
        if rows.shape[1] > 2:
            rest = self.new(len(rows))
            self.define(rest, rows[:, 1:])
            rows = np.stack([rows[:, 0], rest], 1)
        hole = (atoms < 0) | (self.why[atoms] > 0)
        if hole.any():
            self.fix(rows[hole], "it shares a dimension with something that cannot be cut")
        atoms, rows = atoms[~hole], rows[~hole]
        roots, first, inverse = np.unique(self.find(atoms), return_index=True, return_inverse=True)
        bare = self.parts[roots, 0] < 0
        self.parts[roots[bare]] = rows[first[bare]]
        self.refined = True
        self.union(self.parts[roots][inverse].ravel(), rows.ravel())
        return None

    # ---- label matrices ----------------------------------------------------------------------------------------

    def resolve(self, labels: Atoms) -> Atoms:
        """The same matrix in free, unrefined root atoms: ``(n, k')``, columns without any atom dropped."""
        labels = self.find(labels)
        for depth in range(DEEPEST + 1 if self.refined else 0):
            if depth == DEEPEST:  # refinements in a circle: nothing of this can be cut
                self.fix(labels, "its sizes are coupled in a circle")
                break
            parts = self.parts[labels]  # (n, k, 2)
            refined: NDArray[np.bool_] = np.logical_or.reduce(parts[..., 0] >= 0, axis=0)  # (k,)
            if not refined.any():
                break
            columns = []
            for c in range(labels.shape[1]):
                split = parts[:, c, 0] >= 0
                columns.append(np.where(split, parts[:, c, 0], labels[:, c]))
                if refined[c]:
                    columns.append(np.where(split, parts[:, c, 1], NONE))
            labels = self.find(np.stack(columns, 1))
        fixed = self.why[labels] > 0
        if fixed.any():
            labels = np.where(fixed, NONE, labels)
        elif labels.shape[1] == 1 and (labels >= 0).any():
            return labels
        for c in range(1, labels.shape[1]):
            repeated: NDArray[np.bool_] = np.logical_or.reduce(labels[:, :c] == labels[:, c : c + 1], axis=1)
            labels[repeated, c] = NONE
        used: NDArray[np.bool_] = np.logical_or.reduce(labels >= 0, axis=0)
        return labels[:, used]

    def unify_all(self, a: Atoms, others: Sequence[Atoms]) -> None:
        """Row i of one matrix survives iff row i of each of the others does; at once where all have one column."""
        resolved = [self.resolve(b) for b in (a, *others)]
        if all(b.shape[1] == 1 for b in resolved):
            return self.union(np.concatenate([resolved[0]] * len(others)), np.concatenate(resolved[1:]))
        for b in others:
            self.unify(a, b)
        return None

    def unify(self, a: Atoms, b: Atoms) -> None:
        """Row i of one matrix survives iff row i of the other does."""
        a, b = self.resolve(a), self.resolve(b)
        if a.shape[1] == 1 and b.shape[1] == 1:
            return self.union(a, b)
        has = np.concatenate([a >= 0, b >= 0], 1)
        patterns, inverse = np.unique(has, axis=0, return_inverse=True)
        inverse = inverse.ravel()
        for p, pattern in enumerate(patterns):
            rows = inverse == p
            left, right = pattern[: a.shape[1]], pattern[a.shape[1] :]
            self._unify_block(a[rows][:, left], b[rows][:, right])
        return None

    def _unify_block(self, a: Atoms, b: Atoms) -> None:
        """Two hole-free blocks: match equal columns, then columns of equal pattern; refine or fix what is left."""
        a, b = self.resolve(a), self.resolve(b)
        if (a < 0).any() or (b < 0).any():  # fixed meanwhile, by an earlier block
            return self.unify(a, b)
        left, right = list(a.T), list(b.T)
        for same in (np.array_equal, _same_pattern):
            for column in list(left):
                for other in right:
                    if same(column, other):
                        self.union(column, other)
                        left = [c for c in left if c is not column]
                        right = [c for c in right if c is not other]
                        break
        if not left or not right:
            for column in left + right:
                self.fix(column, "it meets something that cannot be cut")
        elif len(left) == 1:
            self.define(left[0], np.stack(right, 1))
        elif len(right) == 1:
            self.define(right[0], np.stack(left, 1))
        else:
            for column in left + right:
                self.fix(column, "it is divided in two ways that do not fit each other")
        return None

    def merge(self, a: Atoms | None, n: int, b: Atoms | None, m: int) -> Atoms | None:
        """The labels of dimensions of sizes n and m laid into one of size n*m (a major)."""
        columns = []
        if a is not None:
            columns.append(np.repeat(a, m, axis=0))
        if b is not None:
            columns.append(np.tile(b, (n, 1)))
        return np.concatenate(columns, 1) if columns else None

    def split(self, labels: Atoms | None, n: int, m: int) -> tuple[Atoms | None, Atoms | None]:
        """The labels of a dimension of size n*m divided into (n, m), refining what depends on both."""
        if labels is None or n == 1 or m == 1:
            return (None, labels) if n == 1 else (labels, None)
        labels = self.resolve(labels)
        major, minor = [], []
        for c in range(labels.shape[1]):
            grid = labels[:, c].reshape(n, m)
            if (grid == grid[:, :1]).all():
                major.append(grid[:, 0])
            elif (grid == grid[:1]).all():
                minor.append(grid[0])
            else:
                h, w = self.new(n), self.new(m)
                pairs = np.stack([np.repeat(h, m), np.tile(w, n)], 1)  # (n*m, 2)
                self.define(grid.ravel(), pairs)
                major.append(h)
                minor.append(w)
        return (np.stack(major, 1) if major else None, np.stack(minor, 1) if minor else None)


def stack(blocks: list[Atoms]) -> Atoms:
    """Row blocks of different numbers of columns under each other, filled up with "none"."""
    width = max(block.shape[1] for block in blocks)
    return np.concatenate([np.pad(b, ((0, 0), (0, width - b.shape[1])), constant_values=NONE) for b in blocks])


def _same_pattern(a: Atoms, b: Atoms) -> bool:
    """Whether two columns divide the rows alike."""
    return np.array_equal(_first_seen(a), _first_seen(b))


def _first_seen(column: Atoms) -> Atoms:
    _, first, inverse = np.unique(column, return_index=True, return_inverse=True)
    return first[inverse]
