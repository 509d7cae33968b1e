"""Gradual magnitude pruning, and the same with feedback."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from prunus.allocators import allocate
from prunus.core import Budget, InputError
from prunus.core.checks import a_portion, a_word, check_arguments
from prunus.criteria import of_data, score
from prunus.masks.moment import Method, Moment, Update, methods, often
from prunus.masks.rules import RULES
from prunus.schedules import gradual


def towards(density: float, progress: Callable[[int], float], *, criterion: str, allocator: str, back: bool) -> Update:
    r"""The best weights by a criterion, as many as the schedule says: density $1 - p_t (1 - d)$.

    `back` says whether a weight that was removed may come back.
    """
    if of_data(criterion):
        raise InputError(f"criterion '{criterion}' looks at data; while training, choose one of weights, e.g. 'l1'.")
    budget = Budget(density=density)

    def update(m: Moment) -> dict[str, Tensor]:
        scores = score(m.groups, criterion, seed=m.seed)
        if not back:
            lowest = min(float(s.min()) for s in scores.values()) - 1.0
            scores = {id: s.masked_fill(~m.keep[id], lowest) for id, s in scores.items()}
        now = budget.on_the_way(progress(m.step), m.groups.costs())
        keep = m.groups.mask(allocate(m.groups, scores, now, allocator=allocator))
        return {g.id: keep[g.offset : g.offset + g.units] & (m.keep[g.id] | back) for g in m.groups}

    return update


@methods.register("gmp", paper="Zhu & Gupta, To Prune, or Not to Prune, 2017")
def gmp(
    density: float,
    steps: int,
    *,
    begin: float = 0.0,
    stop: float = 0.75,
    every: int | None = None,
    criterion: str = "l1",
    allocator: str = "uniform",
) -> Method:
    r"""Gradual magnitude pruning: $s_t = s_f (1 - (1 - p)^3)$ of every tensor, with $p$ from 0 to 1; hard masks.

    Args:
        begin, stop: fractions of the steps between which pruning happens; every: so many steps.
        criterion, allocator: of single weights, without data.
    """
    check_arguments(locals(), begin=a_portion, stop=a_portion, criterion=a_word, allocator=a_word)
    return _gradual(density, steps, begin, stop, often(every, steps), criterion, allocator, back=False, rule="hard")


@methods.register("dpf", paper="Lin et al., Dynamic Model Pruning with Feedback, ICLR 2020")
def dpf(
    density: float,
    steps: int,
    *,
    begin: float = 0.0,
    stop: float = 0.75,
    every: int | None = None,
    criterion: str = "l1",
    allocator: str = "global",
) -> Method:
    r"""Pruning with feedback: $w \leftarrow w - \eta\, g(w \odot m)$ on all weights; the largest of them are the mask.

    The density falls as in gradual magnitude pruning; removed weights come back when they have grown.  After `stop` the
    masks move at constant density.

    Args: as of ``gmp``.
    """
    check_arguments(locals(), begin=a_portion, stop=a_portion, criterion=a_word, allocator=a_word)
    return _gradual(
        density, steps, begin, stop, often(every, steps, 16), criterion, allocator, back=True, rule="feedback"
    )


def _gradual(
    density: float,
    steps: int,
    begin: float,
    stop: float,
    every: int,
    criterion: str,
    allocator: str,
    *,
    back: bool,
    rule: str,
) -> Method:
    first, last = int(begin * steps), max(int(stop * steps), int(begin * steps) + 1)
    progress = gradual(first, last, every=every)

    def when(step: int) -> bool:
        return step == last or (step > first and (step - first) % every == 0 and (step < last or back))

    update = towards(density, progress, criterion=criterion, allocator=allocator, back=back)
    return Method(rule=RULES[rule], when=when, update=update)
