"""Hashes against integer arithmetic without limits, and the laws of what is drawn with them."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given

from prunus.data.order import hashed, integers, shuffled, stratified

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=20), st.lists(st.integers(0, 2**63 - 1), max_size=3))
def test_hash_is_splitmix(index: list[int], key: list[int]) -> None:
    state = 0
    for part in key:
        state = mix((state * GOLDEN + part + GOLDEN) & MASK)
    expected = [mix((state + (i + 1) * GOLDEN) & MASK) for i in index]
    assert hashed(torch.tensor(index), *key).tolist() == expected


def test_without_a_key_it_is_the_published_sequence() -> None:
    # the first outputs of SplitMix64 from state 0, as in the test vectors of the reference implementation
    assert hashed(torch.arange(3)).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_integers_are_even_and_independent_of_their_company() -> None:
    index = torch.arange(90_000)
    drawn = integers(index, 9, 3, 1)
    counts = torch.bincount(drawn, minlength=9)
    assert len(counts) == 9
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 40  # chi-square, 8 degrees of freedom: 40 is p = 3e-6
    some = torch.tensor([5, 88_888, 17])
    assert torch.equal(integers(some, 9, 3, 1), drawn[some])


@given(st.integers(1, 300), st.integers(0, 5), st.integers(0, 5))
def test_shuffled_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    order = shuffled(count, seed, epoch)
    assert order.sort().values.tolist() == list(range(count))


def test_another_seed_or_epoch_is_another_order() -> None:
    first = shuffled(100, 0, 0)
    for other in (shuffled(100, 1, 0), shuffled(100, 0, 1)):
        assert (first == other).sum() < 10


@given(st.lists(st.integers(0, 4), min_size=1, max_size=120), st.data())
def test_stratified_takes_its_share_of_every_class(labels: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(labels)))
    rows = stratified(torch.tensor(labels), count, 7)
    assert len(set(rows.tolist())) == count
    assert rows.tolist() == sorted(rows.tolist())
    taken = torch.bincount(torch.tensor(labels)[rows], minlength=5)
    for label in range(5):
        assert abs(taken[label] - count * labels.count(label) / len(labels)) < 1 + 1e-9
