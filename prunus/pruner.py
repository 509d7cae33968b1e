"""The composition: the verbs of prunus in a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from prunus.allocators import Problem, allocate
from prunus.allocators.base import Floor
from prunus.core import Budget, InputError, Report
from prunus.criteria import needs, score, unscored
from prunus.observe import collect
from prunus.surgery import absorb_, select_, shrink_
from prunus.surgery.select import drop_identities_
from prunus.tracing import trace


def prune_(
    model: nn.Module,
    example_inputs: Any,
    *,
    budget: Budget,
    criterion: str | Callable[..., Tensor] = "l2",
    allocator: str | Callable[[Problem], Tensor] = "global",
    data: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    freeze: Any = (),
    only: Any = (),
    round_to: int = 1,
    floor: Floor = None,
    absorb: bool = False,
    select: bool = False,
    verify: bool = True,
    seed: int = 0,
) -> Report:
    """Trace, score, allocate and cut `model` in place so that it costs at most `budget`: use ``report.model``.

    It is exactly the lines below; retype them to change one.  When the budget cannot be met nothing is changed.

    Args:
        example_inputs: whatever forward takes: a tensor, a tuple of positional inputs, or `Inputs`.
        budget: what may remain, e.g. ``Budget(macs=0.5)``.
        criterion, allocator: names, or the registered functions themselves.
        data, loss: batches and the loss for criteria that look at data (see `prunus.observe.collect`).
        freeze, only: names, globs or modules that must not, or that alone may, be cut (see `prunus.tracing.trace`).
        round_to, floor: multiples and least number of kept units (see `prunus.allocators.allocate`).
        absorb: first move the constant output of removed units into the next layer.
        select: first insert channel selections before normalisations that open a block (pre-activation networks).
        verify: prove the cut.
        seed: for criteria that draw at random.

    Raises: what its verbs raise; `InputError` when the criterion looks at data and none is given.
    """
    wanted = needs(criterion)
    if wanted and data is None:
        raise InputError(f"criterion {criterion!r} looks at data ({', '.join(sorted(wanted))}): give data= batches.")
    if select:
        select_(model, example_inputs)
    try:
        groups = trace(model, example_inputs, freeze=freeze, only=only)
        stats = collect(model, groups, data, wanted, loss) if wanted and data is not None else None
        scores = score(groups, criterion, stats, seed=seed)
        plan = allocate(groups, scores, budget, allocator=allocator, round_to=round_to, floor=floor)
    except BaseException:
        drop_identities_(model)  # what select_ put in
        raise
    if absorb:
        absorb_(model, groups, plan, new_biases=budget.params is None)
        groups = trace(model, example_inputs, freeze=freeze, only=only)  # it may have got biases
    report = shrink_(model, groups, plan, verify=verify)
    return replace(report, left_alone=report.left_alone + unscored(groups, scores, criterion))
