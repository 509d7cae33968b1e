"""Augmentation of a batch against one image at a time."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from prunus.core import InputError, UnknownNameError
from prunus.data import Augment
from prunus.data.order import FLIP, SHIFT_X, SHIFT_Y, integers


def one_image(image: Tensor, sample: int, augment: Augment, seed: int, epoch: int) -> Tensor:
    """Pixel by pixel: where does each pixel of the result come from?"""
    index = torch.tensor([sample])
    dy = int(integers(index, 2 * augment.shift + 1, seed, epoch, SHIFT_Y)) - augment.shift
    dx = int(integers(index, 2 * augment.shift + 1, seed, epoch, SHIFT_X)) - augment.shift
    mirrored = augment.flip and bool(integers(index, 2, seed, epoch, FLIP))
    _, height, width = image.shape
    out = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                column = width - 1 - (x + dx) if mirrored else x + dx
                out[:, y, x] = image[:, y + dy, column]
    return out


@given(st.integers(0, 3), st.booleans(), st.integers(0, 99), st.integers(0, 3), st.sampled_from([1, 3]))
def test_a_batch_is_its_images(shift: int, flip: bool, seed: int, epoch: int, channels: int) -> None:
    images = torch.randint(1, 256, (5, channels, 6, 7), dtype=torch.uint8)
    index = torch.tensor([4, 0, 77, 3, 12])
    augment = Augment(shift, flip)
    out = augment(images, index, seed, epoch)
    for image, sample, result in zip(images, index.tolist(), out, strict=True):
        assert torch.equal(result, one_image(image, sample, augment, seed, epoch))


def test_every_shift_and_both_sides_happen() -> None:
    images = torch.zeros(2_000, 1, 5, 5, dtype=torch.uint8)
    images[:, 0, 2, 2], images[:, 0, 2, 3] = 255, 100  # a bright pixel with a darker one on its right
    out = Augment(2, flip=True)(images, torch.arange(2_000), 0, 0)
    bright = (out == 255).nonzero()[:, 2:]
    assert len(bright.unique(dim=0)) == 25
    right = (out[..., :-1] == 255) & (out[..., 1:] == 100)
    assert 600 < right.sum() < 1_000  # half of 2,000, less those whose darker pixel moved out


def test_names() -> None:
    default = Augment(4, flip=True)
    assert Augment.of(None, default) == Augment.of("auto", default) == default
    assert Augment.of("none", default) == Augment()
    assert Augment.of("shift", default) == Augment(4)
    with pytest.raises(UnknownNameError, match="Did you mean 'shift'"):
        Augment.of("shfit", default)
    with pytest.raises(InputError, match="shift=-1"):
        Augment(-1)
