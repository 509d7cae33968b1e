"""The composition: the verbs of prunus in a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from prunus.allocators import Problem, allocate
from prunus.allocators.base import Floor
from prunus.core import (
    Budget,
    BudgetError,
    Groups,
    InputError,
    Inputs,
    NothingToPruneError,
    PrunusError,
    Report,
    VerificationError,
)
from prunus.core.callbacks import each
from prunus.core.checks import check_arguments
from prunus.core.inputs import Outputs
from prunus.core.stepping import plain_optimizers
from prunus.core.undo import all_or_nothing
from prunus.core.wrappers import unwrapped
from prunus.criteria import needed, score, unscored
from prunus.observe import collect
from prunus.recovery import merge_, method_of, prepare
from prunus.surgery import absorb_, give_biases_, select_, shrink_
from prunus.surgery.attached import check_cuttable
from prunus.tracing import check_prunable, trace

ATTEMPTS = 4  # cuts in place, each without the groups that failed before


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
    repair: bool | str = False,
    merge: bool = False,
    per: str | None = None,
    seed: int = 0,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    outputs: Outputs | None = None,
) -> Report:
    """Trace, score, allocate and cut `model` in place so that it costs at most `budget`: use ``report.model``.

    It is exactly the lines below; retype them to change one.  When the budget cannot be met nothing is changed.  Where
    a cut in place does not pass its proof, it is tried without the groups to blame; where no cut in place can be right,
    or meet the budget, ``report.model`` is the rewritten network (see `prunus.rewrite`) and `model` stays as it was.

    Args:
        example_inputs: whatever forward takes: a tensor, a tuple of positional inputs, or `Inputs`; of a network that
            is called in several ways a list of `Inputs`, one a call.
        budget: what may remain, e.g. ``Budget(macs=0.5)``.
        criterion, allocator: names, or the registered functions themselves.
        data, loss: batches and the loss for criteria that look at data (see `prunus.observe.collect`).
        freeze, only: names, globs or modules that must not, or that alone may, be cut (see `prunus.tracing.trace`).
        round_to, floor: multiples and least number of kept units (see `prunus.allocators.allocate`).
        absorb: first move the constant output of removed units into the next layer.
        select: first insert channel selections before normalisations that open a block (pre-activation networks).
        verify: prove the cut.
        repair: ``"least-squares"`` (or True) solves every layer again so that it gives what it gave, ``"blocks"`` then
            trains every block that was cut, ``"bias"`` sets biases alone; it reads `data`, and comes after the proof,
            for it changes the function on purpose (see `prunus.recovery.prepare`).
        merge: first add what layers read of every removed unit to what they read of the kept one that is most like it
            (see `prunus.recovery.merge_`; no data are needed).
        per: ``macs`` or ``params``: scores are divided by what a unit costs (see `prunus.criteria.score`).
        seed: for criteria that draw at random.
        optimizer: the one in whose training the cut falls: its state follows, and it goes on.
        outputs: what forward returns -> the tensors that must stay as they are (see `prunus.tracing.trace`).

    Raises: what its verbs raise; `InputError` when the criterion looks at data and none is given.
    """
    check_arguments(locals())
    model, wanted, example_inputs = unwrapped(model), needed(criterion, data), Inputs.of(example_inputs, outputs)
    check_cuttable(model)
    method = method_of(repair)
    if method and data is None:
        raise InputError(f"repair={repair!r} rebuilds layers from data: give data= batches (no labels are needed).")
    if data is not None and (wanted or method):
        data = list(each(data))  # it is gone through several times
    optimizers = plain_optimizers(optimizer) if optimizer is not None else None

    def cut(in_place: bool, spared: tuple[str, ...]) -> Report:
        def traced() -> Groups:
            found = trace(model, example_inputs, freeze=freeze, only=only, in_place=in_place)
            return found.without(spared, WRONG)

        groups = traced()
        check_prunable(groups)
        stats = collect(model, groups, data or (), wanted, loss) if wanted else None
        scores = score(groups, criterion, stats, seed=seed, per=per)
        plan = allocate(groups, scores, budget, allocator=allocator, round_to=round_to, floor=floor)
        whole = groups.costs()
        with all_or_nothing(model if absorb or merge or method == "bias" else None):  # what comes before the cut
            if absorb:
                absorb_(model, groups, plan, new_biases=budget.params is None)
            given = give_biases_(model, groups, plan) if method == "bias" and budget.params is None else ()
            groups = traced() if absorb or given else groups  # it may have got biases
            mend = prepare(method, model, groups, plan, data) if method and data is not None else None
            merged = merge_(model, groups, plan) if merge else None
            report = shrink_(model, groups, plan, verify=verify, optimizer=optimizers)
        if merged is not None:
            told = f"{merged.units} removed units of {merged.groups} groups were merged before the proof"
            report = replace(report, notes=(*report.notes, told, *merged.notes))
        if mend is not None:
            done = mend(report.model, trace(report.model, example_inputs, in_place=False))
            report = replace(report, notes=(*report.notes, *done))
        left_alone = report.left_alone + unscored(groups, scores, criterion)
        return replace(report, before=whole, left_alone=left_alone)

    with all_or_nothing(*(optimizers or ())), all_or_nothing(model) as was:
        if select:
            select_(model, example_inputs)
        report = _in_some_way(cut)
        if not report.in_place:
            was.restore_own()  # the model stays as it was; optimizers go on with the rewritten one
        return report


WRONG = "the model's code does something else once its size changes"


def _in_some_way(cut: Callable[[bool, tuple[str, ...]], Report]) -> Report:
    """In place; then without the groups whose cut failed the proof; then by rewriting the network."""
    spared: tuple[str, ...] = ()
    first: PrunusError | None = None
    for _ in range(ATTEMPTS):
        try:
            return cut(True, spared)
        except VerificationError as error:
            first, spared = first or error, spared + error.groups
            if not error.groups:
                break
        except BudgetError as error:
            first = first or error
            if error.least is None:
                raise
            break
        except NothingToPruneError as error:
            first = first or error
            break
    assert first is not None
    try:
        return cut(False, ())
    except PrunusError as error:
        raise first from error
