"""Dynamic network surgery."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.core.checks import a_number, a_portion, check_arguments, not_negative, optional
from prunus.masks.moment import Method, Moment, methods
from prunus.masks.rules import RULES

LOW, HIGH = 0.9, 1.1  # of the threshold: weights between keep the mask they have


@methods.register("dns", paper="Guo, Yao, Chen, Dynamic Network Surgery for Efficient DNNs, NIPS 2016")
def dns(
    density: float,
    steps: int,
    *,
    rate: float | None = None,
    gamma: float = 1e-4,
    power: float = 1.0,
    stop: float = 0.75,
) -> Method:
    r"""Surgery: weights below $0.9\,t_l$ are masked, those above $1.1\,t_l$ come back; all train by feedback.

    $t_l = \max(\mu_l + c\,\sigma_l, 0)$ of $|w|$ at the first step (section 3.2).  Masks are revised at a step with
    probability $(1 + \gamma t)^{-p}$, up to `stop` of the steps; from then on
    the masks are fixed, by LAMP scores where they are above the budget.

    Args:
        rate: $c$; None: $t_l$ is the quantile of $|w|$ that leaves `density` at the first step.
    """
    check_arguments(locals(), rate=optional(a_number), gamma=not_negative, power=not_negative, stop=a_portion)

    def threshold(magnitude: Tensor) -> Tensor:
        if rate is None:
            return magnitude.sort().values[int((1 - density) * (len(magnitude) - 1))]
        return (magnitude.mean() + rate * magnitude.std(correction=0)).clamp(min=0)

    def when(step: int) -> bool:
        drawn = torch.rand((), generator=torch.Generator().manual_seed(step))  # the same on all ranks
        return step < stop * steps and bool(drawn < (1 + gamma * step) ** -power)

    def update(m: Moment) -> dict[str, Tensor]:
        out = {}
        for id, kept in m.keep.items():
            w = m.magnitude(id).double()
            if (key := f"threshold {id}") not in m.memory:
                m.memory[key] = threshold(w)
            t = m.memory[key]
            chosen = torch.where(w <= LOW * t, False, torch.where(w > HIGH * t, True, kept))
            out[id] = chosen if bool(chosen.any()) else kept
        return out

    return Method(rule=RULES["feedback"], when=when, update=update, freeze=int(stop * steps))
