"""Sparse evolutionary training."""

from __future__ import annotations

from prunus.core.checks import a_portion, check_arguments, one_of
from prunus.masks.exchange import exchange, smallest
from prunus.masks.moment import Method, Moment, methods, moving
from prunus.schedules import constant


@methods.register("set", paper="Mocanu et al., Scalable Training of Artificial Neural Networks, 2018")
def sparse_evolution(
    density: float,
    steps: int,
    *,
    fraction: float = 0.3,
    every: int | None = None,
    stop: float = 1.0,
    start: str = "erk",
) -> Method:
    """Drop a fixed fraction of the smallest weights of every tensor, and grow as many at random.

    Args:
        fraction: of the kept weights of a tensor that go; every: so many steps (the paper: an epoch).
        stop: after which fraction of the steps masks stay as they are.
    """
    check_arguments(locals(), stop=a_portion, start=one_of("dense", "erk", "uniform"))
    update = exchange(smallest(constant(fraction)), Moment.draw, back=False)
    return Method(start=start, when=moving(every, steps, stop), update=update)
