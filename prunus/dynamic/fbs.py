"""Feature boosting and suppression: the k most salient channels of every layer, boosted by their saliency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.core.checks import check_fields, not_negative, one_of
from prunus.dynamic.gate import Gate, Seen, mean
from prunus.dynamic.method import Method, methods

STEP = 0.1  # by which the density falls from stage to stage


class FBSGate(Gate):
    r"""$g = \mathrm{relu}(ss(x)\,\Phi + \rho)$ with $ss(x)$ the mean of $|x|$ a channel; on are the `count` largest."""

    count: Tensor
    rule, absolute = "largest", True

    def __init__(self, inputs: int, outputs: int, floor: int = 1, init: str = "he") -> None:
        super().__init__(inputs, outputs, floor)
        self.predict = nn.Linear(inputs, outputs)
        nn.init.kaiming_normal_(self.predict.weight)
        if init == "ones":
            nn.init.zeros_(self.predict.weight)
        nn.init.ones_(self.predict.bias)
        self.register_buffer("count", torch.tensor(outputs))
        self.macs = inputs * outputs

    def pool(self, x: Tensor) -> Tensor:
        """The mean absolute value of every channel."""
        return mean(x.abs())

    def respond(self, seen: Tensor) -> Tensor:
        """Saliencies, linear in what is seen as far as they are positive."""
        return self.predict(seen).relu()

    def number(self) -> Tensor | int:
        """How many are on."""
        return self.count


@methods.register("fbs", paper="Gao et al., Dynamic Channel Pruning: Feature Boosting and Suppression, ICLR 2019")
@dataclass(frozen=True)
class FBS(Method):
    r"""The $\lceil d C \rceil$ most salient channels of every layer (Gao et al. 2019).

    $y = \mathrm{relu}(\mathrm{wta}(g) \odot \mathrm{norm}(\mathrm{conv}(x)))$.  The norm keeps the scale $\gamma$ that
    a trained network has, as a factor of the saliency; with $\gamma = 1$ it is the published form.  The density $d$
    falls from 1 to `keep` by a tenth a stage, in stages of equal length.

    Attributes:
        sparsity: the weight of the mean over samples of $\lVert g \rVert_1$ over all layers.
        init: ``he``, as published; ``ones``: saliencies begin at one, so that a trained network begins as it is.

    >>> FBS(keep=0.5).gate(16, 32).macs
    512
    """

    sparsity: float = 1e-8
    init: str = "he"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, sparsity=not_negative, init=one_of("he", "ones"))

    def gate(self, inputs: int, outputs: int) -> Gate:
        """An `FBSGate`."""
        return FBSGate(inputs, outputs, self.floor, self.init)

    def loss(self, ce: Tensor, seen: Sequence[Seen], usual: float | None) -> Tensor:
        """Cross-entropy and the L1 norm of the saliencies."""
        return ce.mean() + self.sparsity * sum(s.saliency.abs().sum(1) for s in seen).mean()  # type: ignore[union-attr]

    @torch.no_grad()
    def close_(self, gates: Sequence[Gate], means: Sequence[Tensor], progress: float) -> None:
        """The density of the stage that training has come to."""
        rate = density(self.keep, progress)
        for gate in gates:
            assert isinstance(gate, FBSGate)
            gate.count.fill_(max(math.ceil(rate * gate.outputs - 1e-9), gate.floor))


def density(keep: float, progress: float) -> float:
    """From 1 to `keep` in steps of a tenth, all equally long.

    >>> [round(density(0.7, p), 1) for p in (0.2, 0.4, 0.9, 1.0)]
    [1.0, 0.9, 0.7, 0.7]
    """
    stages = math.ceil((1 - keep) / STEP - 1e-9)
    return max(keep, 1 - STEP * math.floor(progress * (stages + 1) + 1e-9))
