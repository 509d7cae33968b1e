"""Batches are pure functions of (seed, epoch, sample), however they are cut up."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from prunus.core import InputError
from prunus.data import Augment, Batches, Preprocess, Split

COUNT = 37
PLAIN = Preprocess(scale=255.0)


def numbered(count: int = COUNT) -> Split:
    """Images of noise whose label is their row."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(count), Augment(2, flip=True))


def seen(batches: Batches) -> dict[int, Tensor]:
    """Sample number -> its pixels; no sample may come twice."""
    out: dict[int, Tensor] = {}
    for x, y in batches:
        for image, row in zip(x, y.tolist(), strict=True):
            assert row not in out
            out[row] = image
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 9), st.integers(0, 3))
def test_same_seed_epoch_and_sample_same_pixels(size: int, world: int, seed: int, epoch: int) -> None:
    split = numbered()
    one_by_one = seen(split.batches(1, PLAIN, seed=seed, epoch=epoch, train=True))
    assert len(one_by_one) == COUNT
    ranks = [split.batches(size, PLAIN, seed=seed, epoch=epoch, train=True, rank=r, world=world) for r in range(world)]
    assert len({len(batches) for batches in ranks}) == 1  # else a rank would wait for another for ever
    together: dict[int, Tensor] = {}
    for batches in ranks:
        part = seen(batches)
        assert not together.keys() & part.keys()
        together |= part
    assert all(torch.equal(pixels, one_by_one[row]) for row, pixels in together.items())
    per_rank = COUNT // world
    assert len(together) == world * (per_rank // size * size if per_rank > size else per_rank)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(0, 6), st.integers(1, 3))
def test_start_skips_batches_and_changes_nothing_else(size: int, start: int, world: int) -> None:
    split = numbered()
    for rank in range(world):
        whole = list(split.batches(size, PLAIN, seed=3, epoch=2, train=True, rank=rank, world=world))
        rest = split.batches(size, PLAIN, seed=3, epoch=2, train=True, rank=rank, world=world, start=start)
        assert len(rest) == max(0, len(whole) - start)
        for (x, y), (x2, y2) in zip(whole[start:], rest, strict=True):
            assert torch.equal(x, x2)
            assert torch.equal(y, y2)


def test_a_step_of_two_ranks_is_a_step_of_one_with_twice_the_batch() -> None:
    split = numbered()
    alone = [set(y.tolist()) for _, y in split.batches(8, PLAIN, seed=1, train=True)]
    ranks = [split.batches(4, PLAIN, seed=1, train=True, rank=r, world=2) for r in range(2)]
    pairs = [set(a.tolist()) | set(b.tolist()) for (_, a), (_, b) in zip(*ranks, strict=True)]
    assert pairs == alone


def test_epochs_differ_and_can_be_gone_through_again() -> None:
    split = numbered()
    batches = split.batches(COUNT, PLAIN, epoch=0, train=True)
    (x, y), (x2, y2) = next(iter(batches)), next(iter(batches))
    assert torch.equal(x, x2)
    assert torch.equal(y, y2)
    first, second = seen(batches), seen(split.batches(COUNT, PLAIN, epoch=1, train=True))
    assert list(first) != list(second)
    assert sum(torch.equal(first[row], second[row]) for row in first) < COUNT / 2


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_sees_every_sample_once_as_it_is(world: int) -> None:
    split = numbered()
    together: dict[int, Tensor] = {}
    for rank in range(world):
        together |= seen(split.batches(5, PLAIN, rank=rank, world=world))
    assert sorted(together) == list(range(COUNT))
    assert all(torch.equal(x, split.images[row].float()) for row, x in together.items())
    in_order = torch.cat([y for _, y in split.batches(5, PLAIN)])
    assert in_order.tolist() == list(range(COUNT))


def test_training_without_augmentation_is_the_image() -> None:
    split = numbered()
    for row, x in seen(split.batches(5, PLAIN, train=True, augment="none")).items():
        assert torch.equal(x, split.images[row].float())


@pytest.mark.parametrize("wrong", [{"size": 0}, {"start": -1}, {"rank": 2, "world": 2}])
def test_what_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"batches\((size|start|rank)="):
        numbered().batches(**{"size": 4, **wrong})
