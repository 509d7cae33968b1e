"""Random numbers in the place of parameters that hold one value throughout, for a proof.

A layer that starts at zero (heads, the last norm of a residual block, LayerScale, the second factor of LoRA, the
modulation of DiT) hides everything behind it: any cut would pass.  So does a scale of one hide which of its elements
were removed.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunus.core.running import laid_out_as

SPREAD = 0.2  # of the noise, where it does not add up over a fan
FAN = 0.5  # the standard deviation of what a layer of random weights makes of inputs of one


def stand_ins(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Other values, by name, for every parameter of `model` whose elements are all equal: its value, and noise.

    A single number other than zero stays: it may be a power, or a temperature.

    >>> layer = nn.BatchNorm1d(3)
    >>> sorted(stand_ins(layer, dict(layer.named_parameters())))
    ['bias', 'weight']
    """
    generator = torch.Generator().manual_seed(2)
    out = {}
    for name, _ in model.named_parameters():
        t = tensors[name].detach()
        if not t.is_floating_point() or not t.numel() or not _even(t):
            continue
        value = float(t.flatten()[0])
        if t.numel() == 1 and value:
            continue
        fan = t.numel() // t.shape[0] if t.dim() > 1 else 1
        spread = max(FAN / fan**0.5, SPREAD / 10) if t.dim() > 1 else SPREAD
        noise = spread * torch.randn(t.shape, generator=generator, dtype=torch.float64)
        out[name] = laid_out_as((noise + value).to(t), t)
    return out


def _even(t: Tensor) -> bool:
    """Whether all elements are equal; most tensors tell by their first row that they are not."""
    first = t[(0,) * t.dim()]
    return bool((t[(0,) * max(t.dim() - 1, 0)] == first).all()) and bool((t == first).all())


def jittered(tensors: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The tensors with the least noise that is no rounding."""
    generator = torch.Generator().manual_seed(seed)

    def change(t: Tensor) -> Tensor:
        if not t.is_floating_point() or not t.numel():
            return t
        noise = torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)
        return laid_out_as(t + 1e-9 * t.abs().max() * noise, t)

    return {n: change(t) for n, t in tensors.items()}


def rescaled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with every row of the first dimension at another scale, between a half and one and a half."""
    generator = torch.Generator().manual_seed(3)

    def change(t: Tensor) -> Tensor:
        factors = 0.5 + torch.rand(t.shape[:1], generator=generator, dtype=torch.float64).to(t)
        return t * factors.reshape(-1, *[1] * (t.dim() - 1)) if t.dim() else t

    return {n: change(t) for n, t in tensors.items()}
