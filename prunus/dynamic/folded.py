"""A gated convolution and all that follows it up to its mask, as weights: norms folded, the rest in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.core import InputError
from prunus.dynamic.places import NORM_KINDS, Convolution, Place

CONVOLVE: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)


@dataclass(eq=False)
class Folded:
    """A convolution with the norm behind it: ``weight (O, I / groups, *kernel)``, ``bias (O,)``."""

    conv: Any
    weight: Tensor
    bias: Tensor

    @property
    def depthwise(self) -> bool:
        """Whether every channel is convolved by itself."""
        return bool(self.conv.groups > 1)

    def __call__(self, x: Tensor, out: Tensor | None = None, into: Tensor | None = None) -> Tensor:
        """The convolution of some channels; `x` holds those of `into` alone, the result those of `out` alone."""
        c, weight, bias = self.conv, self.weight, self.bias
        if out is not None:
            weight, bias = weight.index_select(0, out), bias.index_select(0, out)
        if into is not None and not self.depthwise:
            weight = weight.index_select(1, into)
        groups = weight.shape[0] if self.depthwise else 1
        return CONVOLVE[weight.dim() - 3](x, weight, bias, c.stride, c.padding, c.dilation, groups)

    def module(self) -> Any:
        """The same as a convolution module."""
        c = self.conv
        new = type(c)(
            c.in_channels, c.out_channels, c.kernel_size, c.stride, c.padding, c.dilation, c.groups, bias=True
        )
        with torch.no_grad():
            new.weight.copy_(self.weight)
            new.bias.copy_(self.bias)
        return new.eval()


@dataclass(eq=False)
class Scaled:
    """A norm that no convolution precedes: ``scale (C,)``, ``shift (C,)``."""

    scale: Tensor
    shift: Tensor

    def __call__(self, y: Tensor, out: Tensor | None = None) -> Tensor:
        """``scale y + shift`` of some channels."""
        scale, shift = (v if out is None else v.index_select(0, out) for v in (self.scale, self.shift))
        shape = [-1] + [1] * (y.dim() - 2)
        return y * scale.reshape(shape) + shift.reshape(shape)


def fold(model: nn.Module, chain: tuple[str, ...], relu: bool) -> tuple[Folded, list[Any]]:
    """The convolution at the head of a chain of modules, and the steps behind it.

    A step is a `Folded` (depthwise), a `Scaled`, or a module that acts on every number by itself.
    """
    head: Folded | None = None
    steps: list[Any] = []
    for name in chain:
        module = model.get_submodule(name)
        last = steps[-1] if steps else head
        if isinstance(module, Convolution):
            bias = module.bias if module.bias is not None else module.weight.new_zeros(module.out_channels)
            folded = Folded(module, module.weight.detach().clone(), bias.detach().clone())
            head, steps = (folded, steps) if head is None else (head, [*steps, folded])
        elif isinstance(module, NORM_KINDS):
            scale, shift = affine(module)
            if isinstance(last, Folded):
                last.weight = last.weight * scale.reshape([-1] + [1] * (last.weight.dim() - 1))
                last.bias = last.bias * scale + shift
            else:
                steps.append(Scaled(scale, shift))
        else:
            steps.append(module)
    if relu:
        steps.append(nn.ReLU())
    assert head is not None
    return head, steps


def affine(norm: Any) -> tuple[Tensor, Tensor]:
    """A batch norm in evaluation mode as scale and shift."""
    if norm.running_var is None:
        raise InputError("a batch norm without running statistics acts on whole batches: it cannot be skipped.")
    scale = (norm.running_var + norm.eps).rsqrt() * (norm.weight if norm.weight is not None else 1.0)
    shift = (norm.bias if norm.bias is not None else 0.0) - norm.running_mean * scale
    return scale.detach(), shift.detach()


def chain_of(place: Place | None, layer: str) -> tuple[tuple[str, ...], bool]:
    """The modules that a skipped layer stands for, and whether a rectifier follows."""
    return (place.chain, place.relu) if place is not None else ((layer,), False)
