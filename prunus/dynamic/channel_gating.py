"""Channel gating: every channel is on or off, by a small network trained straight through its decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.core.checks import a_number, check_fields, not_negative
from prunus.dynamic.gate import Gate, Seen
from prunus.dynamic.method import Method, methods

HIDDEN = 16


class BinaryGate(Gate):
    r"""$z = 1[W_2\,\mathrm{relu}(W_1\,\mathrm{GAP}(x)) + b_2 + \epsilon > 0]$, with logistic noise while it trains.

    Backward goes through the sigmoid of the same number (the straight-through Gumbel estimate).
    """

    scales = False
    rule = "positive"

    def __init__(self, inputs: int, outputs: int, floor: int = 1, bias: float = 3.0) -> None:
        super().__init__(inputs, outputs, floor)
        self.reduce = nn.Linear(inputs, HIDDEN)
        self.expand = nn.Linear(HIDDEN, outputs)
        nn.init.kaiming_normal_(self.reduce.weight)
        nn.init.normal_(self.expand.weight, std=1e-3)
        nn.init.zeros_(self.reduce.bias)
        nn.init.constant_(self.expand.bias, bias)
        self.macs = inputs * HIDDEN + HIDDEN * outputs

    def respond(self, seen: Tensor) -> Tensor:
        """The log odds that a channel is on."""
        return self.expand(self.reduce(seen).relu())

    def choose(self, saliency: Tensor) -> Tensor:
        """Ones and zeros; in training of noisy saliencies, with the gradient of the sigmoid."""
        if not self.training:
            return super().choose(saliency)
        u = torch.rand_like(saliency).clamp(1e-6, 1 - 1e-6)
        noisy = saliency + u.log() - (-u).log1p()
        soft = noisy.sigmoid()
        return super().choose(noisy) + (soft - soft.detach())


@methods.register("channel-gating", paper="Veit and Belongie, ECCV 2018; Bejnordi et al., ICLR 2020 (channels)")
@dataclass(frozen=True)
class ChannelGating(Method):
    r"""Channels on or off by stochastic binary gates with a target rate (Veit and Belongie 2018; Bejnordi et al. 2020).

    $L = CE + \lambda \sum_l (\overline{z^l} - t)^2$, where $\overline{z^l}$ is the share of channels of layer $l$ that
    are on over the batch, and $t$ is `keep`.

    Attributes:
        target: $\lambda$.
        bias: the log odds that a channel is on, to begin with.
    """

    target: float = 2.0
    bias: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, target=not_negative, bias=a_number)

    def gate(self, inputs: int, outputs: int) -> Gate:
        """A `BinaryGate`."""
        return BinaryGate(inputs, outputs, self.floor, self.bias)

    def loss(self, ce: Tensor, seen: Sequence[Seen], usual: float | None) -> Tensor:
        """Cross-entropy and the distance of the layers' rates from the target."""
        rates = torch.stack([s.mask.mean() for s in seen])
        return ce.mean() + self.target * (rates - self.keep).square().sum()
