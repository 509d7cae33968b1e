"""Sparse networks from scratch: sparse momentum."""

from __future__ import annotations

from torch import Tensor

from prunus.core.checks import a_portion, check_arguments, one_of
from prunus.masks.exchange import exchange, in_proportion, smallest
from prunus.masks.moment import Method, Moment, methods, moving
from prunus.schedules import cosine

PAPER = "Dettmers & Zettlemoyer, Sparse Networks from Scratch: Faster Training without Losing Performance, 2019"


def momentum(m: Moment, id: str) -> Tensor:
    """The absolute dense momentum of every unit: ``(units,)``."""
    return m.seen(id, m.memory[id])


def mean_momentum(m: Moment, id: str, stay: Tensor) -> float:
    """The mean absolute momentum of the units that stay."""
    return float(momentum(m, id)[stay].double().mean()) if bool(stay.any()) else 0.0


@methods.register("snfs", paper=PAPER)
def snfs(
    density: float,
    steps: int,
    *,
    fraction: float = 0.5,
    every: int | None = None,
    stop: float = 1.0,
    smoothing: float = 0.9,
    start: str = "uniform",
) -> Method:
    r"""Sparse momentum: drop the smallest of every tensor, share by mean momentum, grow where it is largest.

    The momentum $v \leftarrow \mu v + \partial L/\partial w$ of all weights, masked ones too, is the method's own,
    whatever the optimizer.  A tensor without room gives what it would get to the others; one of which nothing stays
    gets one weight first.

    Args:
        fraction: that goes at first; it falls to 0 as a cosine; every: so many steps; smoothing: $\mu$.
    """
    check_arguments(locals(), stop=a_portion, smoothing=a_portion, start=one_of("dense", "erk", "uniform"))

    def watch(m: Moment) -> None:
        for id, grad in m.grads.items():
            if id in m.memory:
                m.memory[id].mul_(smoothing).add_(grad)
            else:
                m.memory[id] = grad.clone()

    end = int(stop * steps)
    update = exchange(smallest(cosine(fraction, 0.0, end)), momentum, in_proportion(mean_momentum))
    return Method(start=start, when=moving(every, steps, stop), update=update, watch=watch)
