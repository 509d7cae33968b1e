"""A gate: saliencies of one sample's channels from what goes into a convolution, and the mask they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.runtime import gating


@dataclass(frozen=True, eq=False)
class Seen:
    """What a gate did in one forward, with its graph.

    Attributes:
        saliency: ``(N, C)``, what it thinks of every channel.
        mask: ``(N, C)``, what every channel was multiplied by; zero where it is off.
        features: ``(N, C)``, the mean of the map over its positions, before the mask.
        floored: ``(N,)``, whether fewer channels than the floor would have been on.
    """

    saliency: Tensor
    mask: Tensor
    features: Tensor
    floored: Tensor

    @property
    def active(self) -> Tensor:
        """``(N, C)``, which channels are on."""
        return self.mask != 0


def mean(x: Tensor) -> Tensor:
    """The mean over positions, in 32 bits at least: ``(N, C, *positions) -> (N, C)``."""
    learns = x.requires_grad and torch.is_grad_enabled()
    return _Mean.apply(x) if learns else wide(x).mean(tuple(range(2, x.dim())))


def wide(x: Tensor) -> Tensor:
    """In 32 bits at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def times(y: Tensor, mask: Tensor) -> Tensor:
    """Every channel times its number: ``(N, C, *positions)`` by ``(N, C)``."""
    learns = mask.requires_grad and torch.is_grad_enabled()
    return _Times.apply(y, mask) if learns else y * spread(mask, y)


def spread(values: Tensor, like: Tensor) -> Tensor:
    """``(N, C)`` as ``(N, C, 1, ...)``, in the type of `like`."""
    return values.to(like.dtype)[(..., *[None] * (like.dim() - 2))]


class _Mean(torch.autograd.Function):
    """A mean whose gradient lies in memory as its input does: autograd adds it to another one in one pass over both."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.like = torch.empty_like(x, device="meta")
        return wide(x).mean(tuple(range(2, x.dim())))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        slope = spread(slope / ctx.like[0, 0].numel(), ctx.like)
        return torch.empty_like(ctx.like, device=slope.device).copy_(slope)


class _Times(torch.autograd.Function):
    """A product whose gradient of the mask is summed up in 32 bits, since it is one of all positions."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(y, mask)
        return y * spread(mask, y)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
        y, mask = ctx.saved_tensors
        return slope * spread(mask, slope), wide(slope * y).sum(tuple(range(2, y.dim()))).to(mask.dtype)


class Gate(nn.Module):
    r"""Masks the channels of a map, sample by sample: $\hat F_{nc} = \hat\pi_{nc} F_{nc}$.

    A method's gate says what it sees of the input (`pool`), how saliencies come from that (`respond`) and which of them
    are on: by `rule` and `number` (see `prunus.runtime.gating.decide`), for which the sparse engine has a kernel, or by
    a `choose` of its own.

    Attributes:
        open: saliencies are one and every channel is on: the network is the backbone, to the bit.
        floor: channels that are on in any case, those of largest saliency.
        fixed: this many channels are on for every input, whatever the method says: shapes are then static.
        tape: where `Seen` are noted, if anywhere.

    Args:
        inputs: channels that the gate looks at.
        outputs: channels that it masks.
        floor: channels that are on in any case, 1 by default, at most `outputs`.
    """

    macs: int  # multiply-adds of one saliency
    decays = False  # no weight decay pulls at its parameters
    scales = True  # whether a channel that is on is multiplied by its saliency
    rule = ""  # by which channels are on
    absolute = False  # whether `pool` is the mean of absolute values

    def __init__(self, inputs: int, outputs: int, floor: int = 1) -> None:
        super().__init__()
        self.inputs, self.outputs, self.floor = inputs, outputs, min(floor, outputs)
        self.relu = self.open = False
        self.fixed: int | None = None
        self.tape: list[Seen] | None = None
        self._saliency: Tensor | None = None

    def pool(self, x: Tensor) -> Tensor:
        """What is seen of the input `x`, channel by channel: ``(N, C_in, *positions) -> (N, C_in)``; zero of zero."""
        return mean(x)

    def respond(self, seen: Tensor) -> Tensor:
        """Saliencies ``(N, C)`` of what is seen, ``(N, C_in)``."""
        raise NotImplementedError

    def estimate(self, x: Tensor) -> Tensor:
        """Saliencies ``(N, C)`` of the input `x` ``(N, C_in, *positions)``."""
        return self.respond(self.see(x))

    def see(self, x: Tensor) -> Tensor:
        """What `pool` gives of the input `x`, in the type of the gate's parameters."""
        return self.pool(x).to(next(self.parameters()).dtype)

    def choose(self, saliency: Tensor) -> Tensor:
        """The mask ``(N, C)`` of `saliency` ``(N, C)`` before the floor; zero is off."""
        return gating.decide(saliency, self.rule, self.number(), 0, self.scales)

    def look(self, x: Tensor) -> Tensor:
        """The saliencies of an input `x`, in the bits of the gate's parameters; all one when the gate is `open`."""
        if self.open:
            return x.new_ones(x.shape[0], self.outputs)
        with torch.autocast(x.device.type, enabled=False):  # thresholds divide saliencies that are close to each other
            return self.estimate(x)

    def mask_of(self, saliency: Tensor) -> tuple[Tensor, Tensor]:
        """The mask of `saliency`, with the floor, and for which samples the floor held: ``(N, C)``, ``(N,)``."""
        if self.open:
            return saliency, saliency.new_zeros(len(saliency), dtype=torch.bool)
        if self.fixed is not None:
            mask = gating.decide(saliency, "largest", self.fixed, 0, self.scales)
            return mask, torch.zeros_like(saliency[:, 0], dtype=torch.bool)
        mask = self.choose(saliency)
        short = (mask != 0).sum(1) < self.floor
        raised = gating.decide(saliency, "largest", self.floor, 0, self.scales)
        return torch.where(short[:, None] & (mask == 0), raised, mask), short

    def number(self) -> Tensor | int:
        """The number of `rule`."""
        return 0

    def as_operator(self, x: Tensor) -> bool:
        """Whether the engine is reading the network, and this gate, on a map `x`, is one that it knows."""
        return gating.asked() and bool(self.rule) and not self.open and x.dim() == 4

    def before(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Hook of the convolution `module`: look at what goes into it, the first of `args`."""
        if not self.as_operator(args[0]):
            self._saliency = self.look(args[0])
            return
        saliency = self.respond(gating.seen(args[0], self.absolute))
        if self.fixed is not None:
            self._saliency = gating.gate(saliency, self.fixed, "largest", 0, self.scales)
        else:
            self._saliency = gating.gate(saliency, self.number(), self.rule, self.floor, self.scales)

    def after(self, module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        """Hook of the site `module`: mask `y` ``(N, C, *positions)``, what it gives of `args`."""
        saliency, self._saliency = self._saliency, None
        assert saliency is not None
        if self.as_operator(y):  # the rectifier that forward applies next is enough: the mask is not negative
            return gating.masked(y, saliency)
        mask, floored = self.mask_of(saliency)
        y = y.relu() if self.relu else y  # forward does it once more, which changes nothing
        if self.tape is not None:
            self.tape.append(Seen(saliency, mask, mean(y), floored))
        return times(y, mask)

    def extra_repr(self) -> str:
        """The sizes, for ``print``."""
        return f"{self.inputs}, {self.outputs}"
