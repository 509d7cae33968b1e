"""ManiDP: capacity by how hard an input is, and gates whose saliencies lie as the features do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunus.core import InputError
from prunus.core.checks import above_zero, check_fields, not_negative, one_of
from prunus.dynamic.gate import Gate, Seen
from prunus.dynamic.method import Method, kth_largest, methods

LARGEST = 1000.0  # of a saliency
WIDE = 80  # channels from which on the hidden layer has half as many


class ManiGate(Gate):
    r"""$\pi = \min(\mathrm{relu}(W_2\,\mathrm{relu}(W_1\,\mathrm{GAP}(x)) + b_2), 1000)$, on where $\pi \ge \xi$.

    `threshold` is $\xi$, one of a layer; -1e4 until it is first set.
    """

    threshold: Tensor
    rule = "reaches"

    def __init__(self, inputs: int, outputs: int, floor: int = 1, init: str = "kaiming") -> None:
        super().__init__(inputs, outputs, floor)
        hidden = outputs // 2 if outputs >= WIDE else outputs
        self.reduce = nn.Linear(inputs, hidden, bias=False)
        self.expand = nn.Linear(hidden, outputs)
        nn.init.kaiming_normal_(self.reduce.weight)
        nn.init.kaiming_normal_(self.expand.weight)
        if init == "ones":
            nn.init.zeros_(self.expand.weight)
        nn.init.ones_(self.expand.bias)
        self.register_buffer("threshold", torch.tensor(-1e4))
        self.macs = inputs * hidden + hidden * outputs

    def respond(self, seen: Tensor) -> Tensor:
        """Saliencies from the global average of the input."""
        return self.expand(self.reduce(seen).relu()).relu().clamp(max=LARGEST)

    def number(self) -> Tensor | int:
        """The threshold."""
        return self.threshold


def complexity(
    ce: Tensor, saliencies: Sequence[Tensor], usual: float, share: float = 0.5, power: float = 1.0
) -> Tensor:
    r"""$\frac1N \sum_i w_i \sum_l \mathrm{mean}_c\, \pi^l_{ic}$, $w_i = 1[CE_i < C] ((C - CE_i) / C)^g$, $C = c\,m$.

    What easy inputs use of the network costs, what hard ones use does not.  The weights are constants: through them the
    loss would reward a larger cross-entropy.

    Args:
        ce: ``(N,)``; saliencies: ``(N, C_l)`` a layer; usual: $m$; share: $c$; power: $g$.

    Source: Tang et al., "Manifold Regularized Dynamic Network Pruning", CVPR 2021 (as in the authors' code).

    >>> w = [complexity(torch.tensor([v]), [torch.ones(1, 3)], usual=2.0).item() for v in (0.0, 0.5, 1.0)]
    >>> w
    [1.0, 0.5, 0.0]
    """
    return (ease(ce, usual, share, power) * sum(s.mean(1) for s in saliencies)).mean()


def ease(ce: Tensor, usual: float, share: float = 0.5, power: float = 1.0) -> Tensor:
    """The weight $w_i$ of every sample, ``(N,)`` in [0, 1]: one for no loss, zero from the threshold on."""
    bound = max(share * usual, 1e-12)
    return ((bound - ce.detach()) / bound).clamp(min=0).pow(power) * (ce.detach() < bound)


def similarity(saliencies: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
    r"""$\sum_l \lVert T^l - R^l \rVert_F^2 / N^2$, cosines between the saliencies, and the features, of two inputs.

    Args:
        saliencies, features: ``(N, C_l)`` a layer; before thresholds, and before masks.

    Source: Tang et al., CVPR 2021 (as in the authors' code).
    """
    total = saliencies[0].new_zeros(())
    for s, f in zip(saliencies, features, strict=True):
        s, f = F.normalize(s, dim=1), F.normalize(f, dim=1)
        total = total + (s @ s.T - f @ f.T).square().sum() / len(s) ** 2
    return total


def keep_rate(keep: float, progress: float) -> float:
    r"""$\rho = \frac{1 - \rho^*}{2} \cos(\pi p) + \frac{1 + \rho^*}{2}$: from 1 to the keep rate $\rho^*$.

    >>> [round(keep_rate(0.6, p), 3) for p in (0.0, 0.5, 1.0)]
    [1.0, 0.8, 0.6]
    """
    return (1 - keep) / 2 * math.cos(math.pi * progress) + (1 + keep) / 2


@methods.register("manidp", paper="Tang et al., Manifold Regularized Dynamic Network Pruning, CVPR 2021")
@dataclass(frozen=True)
class ManiDP(Method):
    r"""Channels by thresholds on saliencies, easy inputs with fewer, similar inputs alike (Tang et al. 2021).

    $L = CE + \lambda' L_c + \gamma_s L_s$, with `complexity` $\lambda'$ and `similarity` $\gamma_s$.  At the end of a
    period the threshold of a layer becomes the $\lceil \rho C \rceil$-th largest of its mean saliencies.  As it comes
    from a mean and is applied to single inputs, `keep` is a target; what is kept is measured.

    Attributes:
        share, power: $c$ and $g$ of the weights (`complexity`).
        init: ``kaiming``, as published; ``ones``: saliencies begin at one, so that a trained network begins as it is.

    >>> ManiDP(keep=0.5).gate(16, 32).macs
    1536
    """

    complexity: float = 5e-3
    similarity: float = 1.0
    share: float = 0.5
    power: float = 1.0
    init: str = "kaiming"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(
            self,
            init=one_of("kaiming", "ones"),  # as published, or to begin as the network is
            complexity=not_negative,
            similarity=not_negative,
            power=not_negative,
            share=above_zero,
        )

    def gate(self, inputs: int, outputs: int) -> Gate:
        """A `ManiGate`."""
        return ManiGate(inputs, outputs, self.floor, self.init)

    def loss(self, ce: Tensor, seen: Sequence[Seen], usual: float | None) -> Tensor:
        """Cross-entropy, complexity and similarity; raises `InputError` where complexity counts and `usual` is None."""
        saliencies, total = [s.saliency for s in seen], ce.mean()
        if self.complexity:
            if usual is None:
                raise InputError(
                    "the loss compares with the mean cross-entropy over the training data, which is not known yet: "
                    "call training.begin(batches) before the first step, or take complexity=0."
                )
            total = total + self.complexity * complexity(ce, saliencies, usual, self.share, self.power)
        return total + self.similarity * similarity(saliencies, [s.features for s in seen])

    @torch.no_grad()
    def close_(self, gates: Sequence[Gate], means: Sequence[Tensor], progress: float) -> None:
        """Thresholds from the mean saliencies."""
        rate = keep_rate(self.keep, progress)
        for gate, mean in zip(gates, means, strict=True):
            assert isinstance(gate, ManiGate)
            k = max(math.ceil(rate * gate.outputs - 1e-9), gate.floor)
            gate.threshold.fill_(kth_largest(mean, k))
