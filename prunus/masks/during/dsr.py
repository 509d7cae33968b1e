"""Dynamic sparse reparameterisation."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.core.checks import a_portion, check_arguments, not_negative, one_of
from prunus.masks.exchange import Drop, exchange, in_proportion
from prunus.masks.moment import Method, Moment, methods, moving

HIGH, LOW = 1.1, 0.9  # of the wanted number: what changes the threshold


def below_threshold(fraction: float, threshold: float) -> Drop:
    r"""Drop $|w| < H$ everywhere; $H$ halves when more than 1.1 of what is wanted went, doubles below 0.9 of it."""

    def drop(m: Moment) -> dict[str, Tensor]:
        h = m.memory.setdefault("threshold", torch.tensor(threshold, dtype=torch.float64))
        gone = {id: kept & (m.magnitude(id).double() < h) for id, kept in m.keep.items()}
        count = sum(int(t.sum()) for t in gone.values())
        wanted = fraction * sum(int(t.sum()) for t in m.keep.values())
        h *= 0.5 if count > HIGH * wanted else 2.0 if count < LOW * wanted else 1.0
        return gone

    return drop


def survivors(m: Moment, id: str, stay: Tensor) -> float:
    """How many units a group has left."""
    return float(stay.sum())


@methods.register(
    "dsr", paper="Mostafa & Wang, Parameter Efficient Training of Deep Convolutional Neural Networks, ICML 2019"
)
def dsr(
    density: float,
    steps: int,
    *,
    fraction: float = 0.1,
    threshold: float = 1e-3,
    every: int | None = None,
    stop: float = 1.0,
    start: str = "uniform",
) -> Method:
    """DSR: one threshold for the whole network, which adapts; what goes is grown at random.

    A tensor gets a share of the new weights in proportion to its survivors (section 3), none where one was just
    dropped; one without survivors gets one weight first, where the authors' rule would give it none for ever.

    Args:
        fraction: of the kept weights that is wanted to go; threshold: the first one; every: so many steps.
    """
    check_arguments(locals(), threshold=not_negative, stop=a_portion, start=one_of("dense", "erk", "uniform"))
    update = exchange(below_threshold(fraction, threshold), Moment.draw, in_proportion(survivors), back=False)
    return Method(start=start, when=moving(every, steps, stop), update=update)
