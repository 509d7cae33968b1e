"""The label algebra on small dimensions, against sets computed by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prunus.tracing.labels import Labels


def test_union_is_transitive_and_vectorised():
    labels = Labels()
    a = labels.new(6)
    labels.union(a[:5], a[1:])
    assert len(set(labels.find(a).tolist())) == 1


def test_what_meets_nothing_is_fixed_with_its_reason():
    labels = Labels()
    a = labels.new(3)
    labels.union(a, np.array([-1, -1, -1]))
    assert labels.resolve(a[:, None]).shape == (3, 0)
    assert "cannot be cut" in labels.reasons[0]


def test_splitting_refines_into_a_product_and_merging_restores_it():
    labels = Labels()
    a = labels.new(6)[:, None]
    major, minor = labels.split(a, 2, 3)
    rows = labels.resolve(a)
    assert rows.shape == (6, 2)
    again = labels.resolve(labels.merge(major, 2, minor, 3))
    assert np.array_equal(np.sort(rows, 1), np.sort(again, 1))
    assert len(np.unique(rows[:, 0])) == 2 and len(np.unique(rows[:, 1])) == 3


def test_splitting_in_another_order_gives_the_transposed_product():
    """A channel shuffle: (2, 3) read as (3, 2) after a transpose is still one product."""
    labels = Labels()
    a = labels.new(6)[:, None]
    major, minor = labels.split(a, 2, 3)
    shuffled = labels.merge(minor, 3, major, 2)  # index j * 2 + i
    rows, other = labels.resolve(a), labels.resolve(shuffled)
    order = np.arange(6).reshape(2, 3).T.ravel()
    assert np.array_equal(np.sort(rows[order], 1), np.sort(other, 1))


def test_a_fixed_conjunction_fixes_its_parts():
    labels = Labels()
    a = labels.new(4)
    major, minor = labels.split(a[:, None], 2, 2)
    labels.fix(a[:1], "kept")
    assert labels.resolve(major).tolist()[0] != [] and (labels.resolve(major)[0] < 0).all()
    assert (labels.resolve(minor)[0] < 0).all()
    assert (labels.resolve(major)[1] >= 0).all()


def test_a_plain_dimension_that_meets_a_product_becomes_one():
    labels = Labels()
    heads, width = labels.new(2)[:, None], labels.new(3)[:, None]
    plain = labels.new(6)[:, None]
    labels.unify(plain, labels.merge(heads, 2, width, 3))
    assert np.array_equal(np.sort(labels.resolve(plain), 1), np.sort(labels.merge(heads, 2, width, 3), 1))


def test_two_divisions_that_do_not_fit_are_fixed():
    labels = Labels()
    a, b, c, d = (labels.new(n)[:, None] for n in (2, 6, 3, 4))
    labels.unify(labels.merge(a, 2, b, 6), labels.merge(c, 3, d, 4))
    assert all(labels.resolve(x).shape[1] == 0 for x in (a, b, c, d))


def test_a_circle_of_refinements_ends():
    labels = Labels()
    a = labels.new(4)[:, None]
    for _ in range(3):
        major, minor = labels.split(a, 2, 2)
        if major is not None:  # a matrix equal to its transpose
            labels.unify(a, labels.merge(minor, 2, major, 2))
    assert labels.resolve(a).shape[1] <= 2


def test_dividing_a_dimension_with_a_fixed_index_fixes_its_row_and_column():
    labels = Labels()
    a = labels.new(6)[:, None]
    labels.fix(a[4], "kept")  # row 1, column 1 of (2, 3)
    major, minor = labels.split(a, 2, 3)
    assert (labels.resolve(major) >= 0).any(1).tolist() == [True, False]
    assert (labels.resolve(minor) >= 0).any(1).tolist() == [True, False, True]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_random_unions_and_fixings_are_those_of_sets(seed, at_once):
    """Against sets merged one by one; atoms beyond the first arrays, holes, and several matrices met at once."""
    rng = np.random.default_rng(seed)
    labels, fixed = Labels(), set()
    labels.new(int(rng.integers(1000, 1030)))
    atoms = labels.new(40)
    sets = {int(a): {int(a)} for a in atoms}

    def merge(a, b):
        if a < 0 or b < 0:
            fixed.update({max(a, b)} - {-1})
        elif sets[a] is not sets[b]:
            together = sets[a] | sets[b]
            sets.update(dict.fromkeys(together, together))

    for _ in range(8):
        n = int(rng.integers(1, 6))
        first, *others = (np.where(rng.random(n) < 0.02, -1, rng.choice(atoms, n)) for _ in range(4))
        first, others = labels.resolve(first[:, None]), [labels.resolve(b[:, None]) for b in others]
        if at_once or 0 in (first.shape[1], *(b.shape[1] for b in others)):
            labels.unify_all(first, others)
        else:
            for b in others:
                labels.unify(first, b)
        columns = [m[:, 0].tolist() if m.shape[1] else [-1] * n for m in (first, *others)]
        for b in columns[1:]:
            for x, y in zip(columns[0], b):
                merge(x, y)
    roots, free = labels.find(atoms), labels.resolve(atoms[:, None])
    for i, a in enumerate(atoms):
        held = bool(sets[int(a)] & fixed)
        assert (free.shape[1] == 0 or free[i, 0] < 0) == held
        assert held or {int(b) for b, r in zip(atoms, roots) if r == roots[i]} == sets[int(a)]
    assert labels.find(np.array([-1])).tolist() == [-1]
