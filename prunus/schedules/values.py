"""Schedules of a value: each is made by a function and called with the step, an int or a fraction of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from prunus.core.checks import (
    a_count,
    a_function,
    a_number,
    above_zero,
    check_arguments,
    is_int,
    not_negative,
    sequence,
)

Schedule = Callable[[float], float]


def constant(value: float) -> Schedule:
    """The same value at every step.

    >>> constant(0.1)(1000)
    0.1
    """
    check_arguments(locals(), value=a_number)
    return lambda step: value


def linear(start: float, end: float, steps: int) -> Schedule:
    r"""A straight line, $v_t = a + (b - a)\,t/T$, from `start` to `end` in so many `steps`, then `end`.

    >>> [linear(1.0, 0.0, 4)(t) for t in (0, 1, 4, 9)]
    [1.0, 0.75, 0.0, 0.0]
    """
    check_arguments(locals(), steps=a_count)
    return lambda step: start + (end - start) * _done(step, steps)


def cosine(start: float, end: float, steps: int) -> Schedule:
    r"""Half a cosine, $v_t = b + (a - b)(1 + \cos(\pi t/T))/2$, then `end` (Loshchilov & Hutter, ICLR 2017, eq. 5).

    From `start`, in so many `steps`.

    >>> [round(cosine(1.0, 0.0, 4)(t), 3) for t in (0, 1, 2, 4)]
    [1.0, 0.854, 0.5, 0.0]
    """
    check_arguments(locals(), steps=a_count)
    return lambda step: end + (start - end) * (1 + math.cos(math.pi * _done(step, steps))) / 2


def exponential(start: float, end: float, steps: int) -> Schedule:
    r"""A constant factor per step, $v_t = a\,(b/a)^{t/T}$, then `end`; both must be positive.

    From `start`, in so many `steps`.

    >>> [round(exponential(1.0, 0.01, 2)(t), 6) for t in (0, 1, 2)]
    [1.0, 0.1, 0.01]
    """
    check_arguments(locals(), start=above_zero, end=above_zero, steps=a_count)
    if start <= 0 or end <= 0:
        raise ValueError(f"an exponential schedule needs positive ends; given {start} and {end}.")
    return lambda step: start * math.pow(end / start, _done(step, steps))


def multi_step(value: float, milestones: Sequence[int], factor: float = 0.1) -> Schedule:
    """`value`, multiplied by `factor` at each of the steps `milestones` that has been reached.

    >>> [round(multi_step(1.0, (80, 120))(t), 6) for t in (0, 79, 80, 120)]
    [1.0, 1.0, 0.1, 0.01]
    """
    check_arguments(locals(), value=a_number, milestones=sequence("steps (whole numbers)", is_int), factor=a_number)
    return lambda step: value * factor ** sum(step >= m for m in milestones)


def warmup(then: Schedule, steps: int, start: float = 0.0) -> Schedule:
    """A straight line from `start` to where `then` begins, over `steps`; after it, `then` from its own step 0.

    >>> [warmup(constant(1.0), 4)(t) for t in (0, 2, 4, 5)]
    [0.0, 0.5, 1.0, 1.0]
    """
    check_arguments(locals(), then=a_function, steps=a_count)
    return lambda step: start + (then(0) - start) * step / steps if step < steps else then(step - steps)


def rewind(schedule: Schedule, to: float) -> Schedule:
    """The schedule again from step `to` on (learning-rate rewinding: Renda, Frankle, Carbin, ICLR 2020).

    >>> rewind(linear(1.0, 0.0, 4), 3)(0)
    0.25
    """
    check_arguments(locals(), schedule=a_function, to=not_negative)
    return lambda step: schedule(to + step)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "exponential": exponential,
    "multi-step": multi_step,
}


def _done(step: float, steps: int) -> float:
    """Which fraction of the steps is over, in [0, 1]; a schedule over no steps is over at once."""
    return min(max(step / steps, 0.0), 1.0) if steps > 0 else 1.0
