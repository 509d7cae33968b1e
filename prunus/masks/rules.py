"""Three rules for weights under a mask while they train: hard, feedback and reset."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.optim import Optimizer

from prunus.core import InputError


@dataclass(eq=False)
class Covered:
    """Parameters under masks.  What forward sees lies in the parameters themselves, so that no module is changed.

    `dense` is what a rule remembers beside them, `thresholds` what is learned about the masks, both by name.
    """

    parameters: dict[str, nn.Parameter]
    masks: dict[str, Tensor]  # True = keep, of the parameters' shapes
    dense: dict[str, Tensor] = field(default_factory=dict)
    thresholds: dict[str, nn.Parameter] = field(default_factory=dict)

    def check(self) -> None:
        """Raise `InputError` when a mask no longer fits its parameter."""
        for name, p in self.parameters.items():
            if self.masks[name].shape != p.shape:
                raise InputError(
                    f"the mask of '{name}' has shape {tuple(self.masks[name].shape)}, the parameter {tuple(p.shape)} "
                    "now: the network was changed while its weights were masked. Call finish_() first, cut, and make "
                    "a new MaskPruner of the new network."
                )

    def clear_(self, optimizers: Iterable[Optimizer] = ()) -> None:
        """Zero where masked: the weights, and every tensor of the optimizers' state that has their shape."""
        for name, p in self.parameters.items():
            removed = ~self.masks[name]
            p.masked_fill_(removed, 0)
            for optimizer in optimizers:
                for value in optimizer.state[p].values() if p in optimizer.state else ():
                    if isinstance(value, Tensor) and value.shape == p.shape:
                        value.masked_fill_(removed, 0)

    def calm_(self) -> None:
        r"""No gradient of a filter that forward sees as zero is longer than those of the others on average.

        The norm behind it divides by the standard deviation of a constant, so that its gradient is $1 / \sqrt\epsilon$
        times too long: one step would make its masked weights the largest of all.  Filters lie along dimension 0.
        """
        for p in self.parameters.values():
            if p.grad is not None:
                alive = vector_norm(p.flatten(1), torch.inf, 1) > 0  # (filters,)
                lengths = vector_norm(p.grad.flatten(1), dim=1)
                usual = (lengths * alive).sum() / alive.sum().clamp(min=1)
                p.grad.mul_(torch.where(alive | (lengths <= usual), 1, usual / lengths).view(-1, *[1] * (p.dim() - 1)))

    def clear_gradients_(self) -> None:
        """Zero the gradients where masked."""
        for name, p in self.parameters.items():
            if p.grad is not None:
                p.grad.masked_fill_(~self.masks[name], 0)


class Rule:
    r"""What happens to weights under a mask in a step; by itself nothing does.

    In a step: `reveal_` once the gradients are there; `mask_` if the masks have changed; `hold_`; the optimizer;
    `conceal_`.  All run without gradients.
    """

    def begin_(self, w: Covered) -> None:
        """From the weights `w`, not masked yet, to what forward sees."""

    def attach_(self, w: Covered, optimizers: Iterable[Optimizer]) -> None:
        """The `optimizers` of the weights `w` take over, with the state that they have."""

    def reveal_(self, w: Covered) -> None:
        """Put the weights and gradients in `w` that the optimizer and the choice of masks work on."""

    def mask_(self, w: Covered) -> None:
        """The masks of `w` are other ones now."""

    def hold_(self, w: Covered) -> None:
        """The last thing that is done to `w` before the optimizer."""

    def conceal_(self, w: Covered, optimizers: Iterable[Optimizer]) -> None:
        """Put what forward sees in `w` again, once `optimizers` have stepped."""


class Hard(Rule):
    r"""Weight, gradient and the optimizer's state are zero where masked, $w, g, v \leftarrow m \odot (w, g, v)$.

    A weight that comes back starts from zero, with a state of zero.  Gradients are dense until `hold_`.
    """

    def begin_(self, w: Covered) -> None:
        w.clear_()

    def attach_(self, w: Covered, optimizers: Iterable[Optimizer]) -> None:
        w.clear_(optimizers)

    def hold_(self, w: Covered) -> None:
        w.clear_gradients_()

    def conceal_(self, w: Covered, optimizers: Iterable[Optimizer]) -> None:
        w.clear_(optimizers)


class Feedback(Rule):
    r"""Forward sees $w \odot m$; its gradient there updates all of $w$: $w \leftarrow w - \eta\, g(w \odot m)$.

    Weight decay and momentum act on the dense $w$, which lies in `Covered.dense` between steps.  The gradients of
    filters that are masked as a whole are kept as short as the others are (`Covered.calm_`).
    """

    def begin_(self, w: Covered) -> None:
        w.dense = {name: p.detach().clone() for name, p in w.parameters.items()}
        w.clear_()

    def reveal_(self, w: Covered) -> None:
        w.calm_()
        for name, p in w.parameters.items():
            p.copy_(w.dense[name])

    def conceal_(self, w: Covered, optimizers: Iterable[Optimizer]) -> None:
        for name, p in w.parameters.items():
            w.dense[name].copy_(p)
        w.clear_()


class Reset(Rule):
    r"""Weights are set to zero when the masks are chosen, and train freely until the next choice.

    The gradients of filters that are zero as a whole are kept as short as the others are (`Covered.calm_`).

    Source: He et al., Soft Filter Pruning, IJCAI 2018.
    """

    def begin_(self, w: Covered) -> None:
        w.clear_()

    def reveal_(self, w: Covered) -> None:
        w.calm_()

    def mask_(self, w: Covered) -> None:
        w.clear_()
        w.clear_gradients_()


RULES: dict[str, Rule] = {"hard": Hard(), "feedback": Feedback(), "reset": Reset()}


def on_device(masks: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """The masks where their parameters are."""
    return {name: mask.to(parameters[name].device, torch.bool) for name, mask in masks.items()}
