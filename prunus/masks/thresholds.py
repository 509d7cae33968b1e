"""The rule of learned thresholds: forward sees a function of weight and threshold, and both are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunus.masks.rules import Covered, Rule


@dataclass(frozen=True, eq=False)
class Learned(Rule):
    r"""Forward sees $\tilde w = f(w, s)$; $w$ and $s$ follow $\partial L/\partial \tilde w$ by the chain rule.

    The dense $w$ lies in `Covered.dense` between steps, $s$ in `Covered.thresholds`.

    Attributes:
        value: $f$, differentiable; initial: the first $s$ of a parameter; penalty: added to the loss for every $s$.
        least: a tensor whose density falls to this or below starts again from thresholds of zero.
    """

    value: Callable[[Tensor, Tensor], Tensor]
    initial: Callable[[Tensor], Tensor]
    penalty: Callable[[Tensor], Tensor] | None = None
    least: float | None = None

    def begin_(self, w: Covered) -> None:
        w.dense = {name: p.detach().clone() for name, p in w.parameters.items()}
        w.thresholds = {name: nn.Parameter(self.initial(p.detach())) for name, p in w.parameters.items()}
        self._show_(w)

    def reveal_(self, w: Covered) -> None:
        w.calm_()
        for name, p in w.parameters.items():
            p.copy_(w.dense[name])
        seen = [(p, w.thresholds[name]) for name, p in w.parameters.items() if p.grad is not None]
        dense = [p.detach().requires_grad_() for p, _ in seen]
        with torch.enable_grad():
            values = [self.value(d, s) for d, (_, s) in zip(dense, seen)]
            penalties = [] if self.penalty is None else [self.penalty(s) for _, s in seen]
        given = [p.grad for p, _ in seen] + [None for _ in penalties]
        slopes = torch.autograd.grad(values + penalties, [*dense, *(s for _, s in seen)], given)
        for (p, s), slope, threshold in zip(seen, slopes, slopes[len(seen) :]):
            p.grad, s.grad = slope, threshold

    def conceal_(self, w: Covered, optimizers: Iterable[Optimizer]) -> None:
        for name, p in w.parameters.items():
            w.dense[name].copy_(p)
        self._show_(w)

    def _show_(self, w: Covered) -> None:
        for name, p in w.parameters.items():
            p.copy_(self.value(w.dense[name], w.thresholds[name]))
            if self.least is not None and int(p.count_nonzero()) <= self.least * p.numel():
                w.thresholds[name].zero_()
                p.copy_(self.value(w.dense[name], w.thresholds[name]))
