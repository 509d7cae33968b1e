"""How the bytes of an image become the input of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from prunus.core import InputError, UnknownNameError, did_you_mean
from prunus.core.checks import (
    Kind,
    a_number,
    a_positive_int,
    a_share,
    above_zero,
    check_arguments,
    check_fields,
    ints,
    is_number,
    optional,
    sequence,
    some_options,
)

a_side = ints(1, 1 << 16, "a side in pixels")


@dataclass(frozen=True)
class Preprocess:
    r"""The preprocessing that belongs to a model, :math:`x = (s \, b / 255 - \mu) / \sigma` for a byte :math:`b`.

    `scale` :math:`s` is the value of white (1 or 255); `mean` and `std` have one entry a channel, or one for all.
    `size` is the (height, width) of the input and `channels` their number; None leaves the images as they are.  An
    image of another size is resized (bilinear, antialiased) until its shorter side is ``size / crop``, then the centre
    is cut out.

    >>> p = Preprocess(mean=(0.5,), std=(0.25,), channels=1)
    >>> p(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
    tensor([[[[-2.,  2.]]]])
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1.0
    size: tuple[int, int] | None = None
    channels: int | None = None
    crop: float = 1.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            mean=a_number | sequence("one a channel", is_number, empty=False),
            std=above_zero | sequence("one a channel", above_zero.holds, empty=False),
            scale=Kind("the value of white, a number above 0 (usually 1 or 255)", above_zero.holds),
            size=optional(a_side | sequence("(height, width)", a_side.holds, empty=False)),
            channels=optional(a_positive_int),
            crop=a_share,
        )
        for name in ("mean", "std"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name), self.channels))
        object.__setattr__(self, "size", _pair(self.size))

    def override(self, given: Mapping[str, Any]) -> Preprocess:
        """The same preprocessing with the fields of `given` replaced.

        Raises: `UnknownNameError` for a field that does not exist.

        >>> Preprocess().override({"scale": 255}).scale
        255
        """
        check_arguments(locals(), given=some_options)
        known = [f.name for f in fields(self)]
        for name in given:
            if name not in known:
                hint = did_you_mean(name, known)
                raise UnknownNameError(f"preprocessing has no '{name}'.{hint} Known: {', '.join(known)}.")
        return replace(self, **given)

    def __call__(self, images: Tensor) -> Tensor:
        """Bytes (N, C, H, W) uint8 -> inputs (N, channels, *size) float32."""
        x = self.fit(images)
        x = self._to_channels(x.float())
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return x.mul_(self.scale / 255).sub_(mean).div_(std)

    def fit(self, images: Tensor) -> Tensor:
        """The `images` (N, C, H, W) uint8 brought to `size`, still uint8; those that have it are returned as is."""
        if self.size is None or tuple(images.shape[2:]) == self.size:
            return images
        height, width = self.size
        factor = max(height / images.shape[2], width / images.shape[3]) / self.crop
        new = [max(t, round(s * factor)) for s, t in zip(images.shape[2:], self.size, strict=True)]
        if list(images.shape[2:]) != new:
            x = interpolate(images.float(), size=new, mode="bilinear", antialias=True, align_corners=False)
            images = x.round_().clamp_(0, 255).to(torch.uint8)
        top, left = (new[0] - height) // 2, (new[1] - width) // 2
        return images[:, :, top : top + height, left : left + width]

    def _to_channels(self, x: Tensor) -> Tensor:
        """Grey repeated, or colours averaged, where the model wants another number of channels."""
        given, wanted = x.shape[1], self.channels or x.shape[1]
        if given == wanted:
            return x
        if given == 1:
            return x.repeat(1, wanted, 1, 1)
        if wanted == 1:
            return x.mean(1, keepdim=True)
        raise InputError(f"the images have {given} channels and the model takes {wanted}; only 1 <-> n is converted.")


def _numbers(name: str, given: Any, channels: int | None) -> tuple[float, ...]:
    values = tuple(float(v) for v in given) if isinstance(given, (tuple, list)) else (float(given),)
    if channels is not None and len(values) not in (1, channels):
        raise InputError(f"preprocess {name}={values}: expected 1 or {channels} numbers, one a channel.")
    return values


def _pair(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or any(not isinstance(s, int) or s < 1 for s in pair):
        raise InputError(f"preprocess size={size!r}: expected a side, or (height, width), in pixels.")
    return pair
