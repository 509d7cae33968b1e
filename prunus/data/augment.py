"""Augmentation of whole batches of bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from prunus.core import UnknownNameError, did_you_mean
from prunus.core.checks import a_flag, anything, check_arguments, check_fields, instance, ints
from prunus.data.order import FLIP, SHIFT_X, SHIFT_Y, integers


@dataclass(frozen=True)
class Augment:
    """Mirror half of the images, and move each by up to `shift` pixels along both axes (black moves in).

    For CIFAR, ``Augment(4, flip=True)`` is the usual random crop after padding by 4.
    """

    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        check_fields(self, shift=ints(0, 4096), flip=a_flag)

    def __call__(self, images: Tensor, index: Tensor, seed: int, epoch: int) -> Tensor:
        """Images (N, C, H, W) uint8 of the samples `index` (N,) -> augmented images of the same shape."""
        if not self.shift and not self.flip:
            return images
        count, _, height, width = images.shape
        if self.flip:
            mirror = integers(index, 2, seed, epoch, FLIP).bool()
            images = torch.where(mirror[:, None, None, None], images.flip(3), images)
        y = integers(index, 2 * self.shift + 1, seed, epoch, SHIFT_Y)
        x = integers(index, 2 * self.shift + 1, seed, epoch, SHIFT_X)
        windows = pad(images, (self.shift,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # (N, C, 2s+1, 2s+1, H, W)
        return windows[torch.arange(count), :, y, x]

    @classmethod
    def of(cls, given: str | Augment | None, default: Augment) -> Augment:
        """From what is `given` in a recipe: ``auto`` (or None) is `default`, ``none`` nothing, ``shift`` no mirroring.

        Raises: `UnknownNameError` for another name.
        """
        check_arguments(locals(), given=anything, default=instance("a prunus.data.Augment", Augment))
        if isinstance(given, Augment):
            return given
        known = {
            "auto": default,
            "none": cls(),
            "shift": cls(default.shift, flip=False),
            "shift-flip": cls(default.shift, flip=True),
        }
        name = "auto" if given is None else given
        if not isinstance(name, str) or name not in known:
            raise UnknownNameError(
                f"no augmentation '{name}'.{did_you_mean(str(name), known)} Known: {', '.join(known)}."
            )
        return known[name]
