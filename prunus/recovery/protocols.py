"""Which learning rate a pruned network is fine-tuned with: pure functions step -> learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

from prunus.core.callbacks import own
from prunus.core.checks import a_function, a_number, a_positive_int, check_arguments
from prunus.core.errors import InputError

Rate = Callable[[float], float]


def last(trained: Rate, total: int) -> Rate:
    """Keep the last learning rate that the network was trained with.

    `trained` is the schedule of the original training, `total` its number of steps.
    Source: Renda, Frankle, Carbin, "Comparing Rewinding and Fine-tuning in Neural Network Pruning", ICLR 2020, 2.

    >>> last(lambda step: 0.1 if step < 5 else 0.01, total=10)(0)
    0.01
    """
    check_arguments(locals(), trained=a_function, total=a_positive_int)
    value = own(trained, "trained=")(total - 1)
    return lambda step: value


def cosine(lr: float, total: int, end: float = 0.0) -> Rate:
    r"""Half a cosine from `lr` to `end` over `total` steps: :math:`e + \frac12 (l - e)(1 + \cos(\pi t / T))`.

    Source: Loshchilov, Hutter, "SGDR", ICLR 2017, equation 5, without restarts.

    >>> [round(cosine(0.1, 4)(step), 3) for step in (0, 2, 4)]
    [0.1, 0.05, 0.0]
    """
    check_arguments(locals(), lr=a_number, total=a_positive_int)
    return lambda step: end + (lr - end) * (1 + math.cos(math.pi * min(step / total, 1.0))) / 2


def rewind(trained: Rate, total: int, steps: int) -> Rate:
    r"""Replay the last `steps` steps of the original schedule: :math:`\eta'(t) = \eta(T - s + t)`.

    Args: trained: the learning rate of every step of the original training; total: how many steps it had.

    Raises `InputError` when more steps are asked for than the original training had.
    Source: Renda, Frankle, Carbin, ICLR 2020, section 2 (learning-rate rewinding).

    >>> [rewind(lambda step: float(step), total=10, steps=3)(step) for step in range(3)]
    [7.0, 8.0, 9.0]
    """
    check_arguments(locals(), trained=a_function, total=a_positive_int, steps=a_positive_int)
    if steps > total:
        raise InputError(f"rewind: {steps} steps of fine-tuning, but the original training had only {total}.")
    return lambda step: trained(total - steps + step)
