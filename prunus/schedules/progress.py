"""How far an iterative pruning is after step t of T: 0 = the original cost, 1 = the budget."""

from __future__ import annotations

from collections.abc import Callable

from prunus.core.checks import a_count, a_function, a_positive_int, check_arguments, one_of

Progress = Callable[[int, int], float]


def one_shot(step: int, steps: int) -> float:
    """Everything in the first step.

    >>> [one_shot(t, 3) for t in (0, 1, 2, 3)]
    [0.0, 1.0, 1.0, 1.0]
    """
    return 1.0 if step > 0 else 0.0


def linear(step: int, steps: int) -> float:
    r"""The same share of the cost in every step, $t/T$.

    >>> [linear(t, 4) for t in (0, 1, 4)]
    [0.0, 0.25, 1.0]
    """
    return min(max(step / steps, 0.0), 1.0)


def cubic(step: int, steps: int) -> float:
    r"""Much at first and ever less, $1 - (1 - t/T)^3$ (Zhu & Gupta, To Prune or Not to Prune, 2017, equation 1).

    >>> [cubic(t, 2) for t in (0, 1, 2)]
    [0.0, 0.875, 1.0]
    """
    return 1 - (1 - linear(step, steps)) ** 3


PROGRESS: dict[str, Progress] = {"one-shot": one_shot, "linear": linear, "cubic": cubic}


def gradual(start: int, stop: int, *, every: int = 1, shape: str | Progress = "cubic") -> Callable[[int], float]:
    r"""A schedule for `prunus.Pruner`: progress 0 up to step `start`, then in jumps `every` so many steps, 1 at `stop`.

    With :math:`n = \lfloor (t - a) / e \rfloor` jumps of :math:`N = \lceil (b - a) / e \rceil` made at step :math:`t`,
    the progress is :math:`\mathrm{shape}(n, N)`.  Raises ValueError unless 0 <= start < stop and every >= 1.

    >>> schedule = gradual(10, 30, every=10, shape="linear")
    >>> [schedule(t) for t in (0, 10, 19, 20, 30, 99)]
    [0.0, 0.0, 0.0, 0.5, 1.0, 1.0]
    """
    check_arguments(
        locals(), start=a_count, stop=a_positive_int, every=a_positive_int, shape=one_of(*PROGRESS) | a_function
    )
    if not (0 <= start < stop and every >= 1):
        raise ValueError(f"gradual({start}, {stop}, every={every}): expected 0 <= start < stop and every >= 1.")
    call = PROGRESS[shape] if isinstance(shape, str) else shape
    jumps = -(-(stop - start) // every)
    return lambda step: call(max(jumps if step >= stop else (step - start) // every, 0), jumps)
