"""Memory-economic sparse training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from prunus.core import InputError
from prunus.core.checks import a_flag, a_number, a_portion, check_arguments, one_of, sequence
from prunus.masks.exchange import best, exchange
from prunus.masks.moment import Method, Moment, methods, moving


@methods.register("mest", paper="Yuan et al., MEST: Accurate and Fast Memory-Economic Sparse Training, NeurIPS 2021")
def mest(
    density: float,
    steps: int,
    *,
    fractions: Sequence[float] = (0.2, 0.1, 0.0),
    milestones: Sequence[float] = (9 / 16, 3 / 4),
    slope: float = 0.0,
    soft: bool = False,
    every: int | None = None,
    start: str = "erk",
) -> Method:
    r"""MEST with elastic mutation: prune a tensor to $n_l (1 - f_t)$ weights, grow it to $n_l$ at random.

    $n_l$ is what it has at first; the highest $|w| + \lambda |\partial L/\partial w|$ stay.  The fraction $f_t$ falls
    at the milestones: at a density of 10 % to 92, 91 and 90 % of zeros, and back to 90.  With `soft` (EM&S, for a soft
    bound of memory) prune to $n_l$ and grow to $n_l (1 + f_t)$: above the budget until the last milestone, where it is
    met.

    Args:
        fractions: $f_t$ before the first milestone, from it, from the second ...; milestones: fractions of the steps
            (the authors' code: epochs 90 and 120 of 160).  After the last, masks stay where the last fraction is 0.
        slope: $\lambda$; every: so many steps (the authors' code: 5 epochs of 160).
    """
    shares = sequence("numbers in [0, 1]", a_portion.holds)
    check_arguments(
        locals(),
        fractions=shares,
        milestones=shares,
        slope=a_number,
        soft=a_flag,
        start=one_of("dense", "erk", "uniform"),
    )
    if len(fractions) != len(milestones) + 1 or not all(0 <= f < 1 for f in fractions):
        raise InputError(
            f"fractions={list(fractions)}: expected one in [0, 1) before each of the {len(milestones)} milestones and "
            "one after the last, e.g. fractions=(0.2, 0.1, 0.0), milestones=(0.5, 0.75)."
        )
    reached = [int(milestone * steps) for milestone in milestones]
    stop = milestones[-1] if milestones and fractions[-1] == 0 else 1.0
    periodically = moving(every, steps, stop)

    def fraction(step: int) -> float:
        return fractions[sum(step >= milestone for milestone in reached)]

    def budget(m: Moment, id: str) -> int:
        return int(m.memory.setdefault(f"budget {id}", m.keep[id].sum()))

    def pruned(m: Moment) -> dict[str, Tensor]:
        stays = {}
        for id, kept in m.keep.items():
            n = budget(m, id)
            score = m.magnitude(id) + slope * m.slope(id)
            stays[id] = best(score, n if soft else n - int(fraction(m.step) * n), kept)
        return {id: kept & ~stays[id] for id, kept in m.keep.items()}

    def grown(m: Moment, gone: Mapping[str, Tensor], room: Mapping[str, Tensor]) -> dict[str, int]:
        aims = {id: budget(m, id) for id in gone}
        aims = {id: n + int(fraction(m.step) * n) if soft else n for id, n in aims.items()}
        return {id: n - int((m.keep[id] & ~gone[id]).sum()) for id, n in aims.items()}

    return Method(
        start=start,
        when=lambda step: periodically(step) or (soft and step == int(stop * steps)),
        update=exchange(pruned, Moment.draw, grown, back=False),
    )
