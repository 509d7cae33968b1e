"""Growing where the gradient is large."""

from __future__ import annotations

from prunus.core.checks import a_portion, check_arguments, one_of
from prunus.masks.exchange import exchange, smallest
from prunus.masks.moment import Method, Moment, methods, moving
from prunus.schedules import cosine


@methods.register("rigl", paper="Evci et al., Rigging the Lottery: Making All Tickets Winners, ICML 2020")
def rigl(
    density: float,
    steps: int,
    *,
    fraction: float = 0.3,
    every: int | None = None,
    stop: float = 0.75,
    start: str = "erk",
) -> Method:
    r"""RigL: drop the smallest $|w|$ of a tensor, grow as many where the dense $|\partial L/\partial w|$ is largest.

    $k_l = \lfloor \alpha_t n_l \rfloor$ with $\alpha_t = \tfrac{\alpha}{2}(1 + \cos(\pi t / T_{end}))$ (section 3).  A
    weight that was just dropped may come back; others start from 0.  The step changes no weight.  Ties go by order,
    where the authors add noise of 1e-5.

    Args:
        fraction: $\alpha$; every: $\Delta T$ steps; stop: $T_{end}$ as a fraction of the steps.
    """
    check_arguments(locals(), stop=a_portion, start=one_of("dense", "erk", "uniform"))
    end = int(stop * steps)
    update = exchange(smallest(cosine(fraction, 0.0, end)), Moment.slope)
    return Method(start=start, when=moving(every, steps, stop, apart=2), update=update, skip=True)
