"""Random numbers in the place of parameters that hold one value throughout, for a proof.

A layer that starts at zero (heads, the last norm of a residual block, LayerScale, the second factor of LoRA, the
modulation of DiT) hides everything behind it: any cut would pass.  So does a scale of one hide which of its elements
were removed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

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
    even = {}
    for name, _ in model.named_parameters():
        t = tensors[name].detach()
        value = _common(t) if t.is_floating_point() and t.numel() else None
        if value is not None and not (t.numel() == 1 and value):
            even[name] = (t, value)
    out = {}
    for (name, (t, value)), noise in zip(even.items(), _drawn(torch.randn, 2, [t.numel() for t, _ in even.values()])):
        fan = t.numel() // t.shape[0] if t.dim() > 1 else 1
        spread = max(FAN / fan**0.5, SPREAD / 10) if t.dim() > 1 else SPREAD
        out[name] = laid_out_as((spread * noise + value).reshape(t.shape).to(t), t)
    return out


def _common(t: Tensor) -> float | None:
    """The value that all elements have; most tensors tell by their first and last that there is none."""
    value, last = t[(0,) * t.dim()].item(), t[(-1,) * t.dim()].item()
    return value if value == last and bool((t == value).all()) else None


def _drawn(function: Callable[..., Tensor], seed: int, sizes: Sequence[int]) -> Sequence[Tensor]:
    """So many random numbers each, drawn at once."""
    generator = torch.Generator().manual_seed(seed)
    return function(sum(sizes), generator=generator, dtype=torch.float64).split(list(sizes))


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
    rows = [t.shape[0] if t.dim() else 0 for t in tensors.values()]
    return {
        n: t * (0.5 + factors).to(t).reshape(-1, *[1] * (t.dim() - 1)) if t.dim() else t
        for (n, t), factors in zip(tensors.items(), _drawn(torch.rand, 3, rows))
    }
