"""Memory-economic sparse training."""

from __future__ import annotations

from torch import Tensor

from prunus.masks.exchange import exchange, smallest
from prunus.masks.moment import Method, Moment, methods, often, periodic
from prunus.schedules import multi_step


@methods.register("mest", paper="Yuan et al., MEST: Accurate and Fast Memory-Economic Sparse Training, NeurIPS 2021")
def mest(
    density: float,
    steps: int,
    *,
    fraction: float = 0.2,
    slope: float = 0.0,
    every: int | None = None,
    stop: float = 0.75,
    start: str = "erk",
) -> Method:
    r"""MEST with elastic mutation: drop the smallest $|w| + \lambda |\partial L/\partial w|$, grow as many at random.

    The fraction that moves halves at a third and at two thirds of the way, and is 0 after `stop`.

    Args:
        fraction: of the kept weights that moves at first; slope: $\lambda$; every: so many steps.
    """

    def score(m: Moment, id: str) -> Tensor:
        return m.magnitude(id) + slope * m.slope(id)

    end = int(stop * steps)
    mutation = multi_step(fraction, (end // 3, 2 * end // 3), 0.5)
    return Method(
        start=start,
        when=periodic(often(every, steps), end),
        update=exchange(smallest(mutation, score), Moment.draw, back=False),
    )
