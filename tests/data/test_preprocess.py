"""Bytes to inputs, against arithmetic by hand and Pillow's resizing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prunus.core import InputError, UnknownNameError
from prunus.data import Preprocess


def test_scale_mean_and_std_by_hand() -> None:
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
    x = Preprocess((0.1, 0.2, 0.3), (1.0, 2.0, 4.0), channels=3)(image)
    expected = [10 / 255 - 0.1, (20 / 255 - 0.2) / 2, (30 / 255 - 0.3) / 4]
    torch.testing.assert_close(x.flatten(), torch.tensor(expected))
    x = Preprocess((5.0,), (2.0,), scale=255.0)(image)
    torch.testing.assert_close(x.flatten(), torch.tensor([2.5, 7.5, 12.5]))


def test_the_bytes_are_left_alone() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    before = images.clone()
    Preprocess((0.5,), (0.5,), size=4, channels=3)(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("target", [(16, 16), (5, 5), (48, 48)])
def test_resizing_is_pillows(target: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    fitted = Preprocess(size=target).fit(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    expected = np.array(Image.fromarray(pixels).resize(target[::-1], Image.Resampling.BILINEAR)).astype(int)
    assert fitted.shape == (1, 3, *target)
    assert np.abs(fitted[0].permute(1, 2, 0).numpy().astype(int) - expected).max() <= 1


def test_shorter_side_then_centre() -> None:
    wide = torch.zeros(1, 1, 10, 30, dtype=torch.uint8)
    wide[..., 10:20] = 200  # the middle third
    fitted = Preprocess(size=(10, 10)).fit(wide)
    assert (fitted == 200).all()
    cropped = Preprocess(size=(8, 8), crop=0.8).fit(wide)  # shorter side 10, so nothing is resized
    assert cropped.shape == (1, 1, 8, 8)
    assert (cropped == 200).all()


def test_channels() -> None:
    grey = torch.tensor([[[[7]]]], dtype=torch.uint8)
    assert Preprocess(channels=3, scale=255)(grey).flatten().tolist() == [7, 7, 7]
    colour = torch.tensor([3, 6, 12], dtype=torch.uint8).view(1, 3, 1, 1)
    assert Preprocess(channels=1, scale=255)(colour).flatten().tolist() == [7]
    with pytest.raises(InputError, match="3 channels and the model takes 4"):
        Preprocess(channels=4)(colour)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"std": (1.0, 0.0, 1.0)}, "above 0"),
        ({"mean": (1.0, 2.0), "channels": 3}, "expected 1 or 3 numbers"),
        ({"size": (3, 4, 5)}, "expected a side"),
        ({"size": 0}, "expected a side"),
        ({"scale": 0}, "value of white"),
        ({"crop": 1.5}, r"\(0, 1\]"),
    ],
)
def test_what_cannot_be(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preprocess(**wrong)


def test_override() -> None:
    own = Preprocess((0.5,), (0.5,), size=(4, 4)).override({"mean": [0.1, 0.2, 0.3], "size": 8})
    assert own == Preprocess((0.1, 0.2, 0.3), (0.5,), size=(8, 8))
    with pytest.raises(UnknownNameError, match="Did you mean 'mean'"):
        own.override({"means": 0})
