"""Soft filter pruning."""

from __future__ import annotations

from prunus.core.checks import a_flag, a_word, check_arguments
from prunus.masks.during.gmp import towards
from prunus.masks.moment import Method, methods, often, periodic
from prunus.masks.rules import RULES


@methods.register("sfp", paper="He et al., Soft Filter Pruning for Accelerating Deep CNNs, IJCAI 2018")
def soft_filters(
    density: float, steps: int, *, every: int | None = None, criterion: str = "l2", asymptotic: bool = False
) -> Method:
    r"""SFP: the filters of every tensor with the smallest norms are set to zero, and all train on; again and again.

    For whole filters: ``prunus.tensors(model, "filter", skip=["fc"])``; cut those that are zero in the end by
    `prunus.prune_`.  No gradient of a filter that is zero is longer than those of the others on average, since the norm
    behind it makes it $1/\sqrt\epsilon$ times too long.

    Args:
        every: so many steps (the paper: an epoch), and before the last step; criterion: of weights, without data.
        asymptotic: (ASFP, He et al. 2019) the removed share $P_t = P (1 - 4^{-8t/T}) / (1 - 4^{-8})$ grows from 0: it
            is three quarters of $P$ after an eighth of the steps; else $P$ from the first time on.
    """
    check_arguments(locals(), criterion=a_word, asymptotic=a_flag)
    between = periodic(often(every, steps), steps)

    def progress(step: int) -> float:
        return (1 - 4 ** (-8 * step / steps)) / (1 - 4**-8) if asymptotic else 1.0

    update = towards(density, progress, criterion=criterion, allocator="uniform", back=True)
    return Method(rule=RULES["reset"], when=lambda step: between(step) or step == steps - 1, update=update)
