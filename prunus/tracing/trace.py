"""What is coupled?  `trace` follows one forward and returns the groups of units that can be cut in place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import (
    Fixed,
    Group,
    Groups,
    InputError,
    Inputs,
    NothingToPruneError,
    TraceError,
    UnknownNameError,
    did_you_mean,
    under,
)
from prunus.core.checks import check_arguments
from prunus.core.inputs import Outputs
from prunus.core.kinds import check_kind
from prunus.tracing import numbers, unvisited
from prunus.tracing.aligned import align, steps_of, unfit
from prunus.tracing.apply import Misfit, trial
from prunus.tracing.build import Built, build
from prunus.tracing.constraints import solve
from prunus.tracing.recording import check_repeats, record
from prunus.tracing.tracer import Dim, Tracer

Pattern = str | nn.Module
TRIALS = 3  # cuts that every set of groups is tried with: the last steps alone, the first, and a random choice


def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    freeze: Iterable[Pattern] | Pattern = (),
    only: Iterable[Pattern] | Pattern = (),
    in_place: bool = True,
    outputs: Outputs | None = None,
) -> Groups:
    r"""Find what in `model` is coupled: the groups of units that must be cut together.

    The user's own forward runs on `example_inputs` in evaluation mode; every ATen call is seen, and labels
    saying which units an index depends on are moved through it.  Nothing is asked of the user and the model is not
    changed.

    Args:
        model: any `nn.Module`.
        example_inputs: what forward takes: a tensor, a tuple of positional inputs, or `Inputs`; of a network that is
            called in several ways a list of `Inputs`, one a call: groups then fit all of them, costs are their sum.
        freeze: names, globs or modules; no parameter under them changes shape.
        only: names, globs or modules; only groups whose producing slices are all under them.
        in_place: whether a cut has to fit the model's own code.  False finds everything that the operators alone allow;
            the cut network is then the rewritten graph of operators.
        outputs: what forward returns -> the tensors that must keep their shapes and values, in any nesting; None: all
            tensors that it holds, inside objects too, but not the caches of transformers.

    Returns: `Groups`, with units in order of execution; ``groups.fixed`` says what was left alone and why.

    Raises: `InputError` for a pattern that matches nothing; `TraceError` when forward itself fails on the example, or
    returns something whose tensors cannot be found (an iterator, a function that keeps some): give `outputs`.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))
    >>> groups = trace(net, torch.zeros(1, 3, 8, 8))
    >>> [(g.id, g.units) for g in groups]
    [('0', 8)]
    >>> [(s.name, s.role) for s in groups["0"].with_role("out", "in")]
    [('0.weight', 'out'), ('4.weight', 'in')]
    """
    check_arguments(locals())
    check_kind(model)
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise InputError(f"the network is inside {type(model).__name__}: trace the network itself, model.module.")
    inputs = Inputs.of(example_inputs, outputs).map(_plain)
    if not inputs.tensors:
        raise InputError("example_inputs holds no tensor; give what forward takes, e.g. a tensor or prunus.Inputs.")
    if not any(t.numel() for t in inputs.tensors):
        raise InputError("example_inputs holds empty tensors only: a batch of at least one sample is needed.")
    tracer = record(model, inputs)
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name in _named(model, freeze, "freeze"):
        for dim in tracer.initial[tracer.names[tensors[name]]]:
            tracer.fix(dim, "frozen by the user")
    if tracer.random:
        check_repeats(model, inputs, tracer)
    groups = _in_place(tracer, model, inputs) if in_place else _on_operators(tracer, inputs)
    groups = replace(groups, fixed=groups.fixed + tuple(Fixed(n, unvisited.WHY) for n in tracer.unvisited))
    if only:
        groups = _only(groups, set(_named(model, only, "only")))
    return groups


def _plain(t: Tensor) -> Tensor:
    """Without a class of its own that only keeps names or boxes: labels are of the tensors that operators see."""
    own = type(t) not in (Tensor, nn.Parameter) and type(t).__torch_dispatch__ is Tensor.__torch_dispatch__
    return t.as_subclass(Tensor) if own else t


def check_prunable(groups: Groups) -> None:
    """Raise `NothingToPruneError`, with the reasons, when there is nothing in the network that may be removed."""
    check_arguments(locals())
    if groups.units:
        return
    reasons = list(dict.fromkeys(f"{f.what}: {f.why}" for f in groups.fixed))
    why = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
    why = why or ("no parameter is cut by the network's operators" if groups.tensors else "it has no parameters")
    raise NothingToPruneError(f"no unit of the network may be removed: there is nothing to prune ({why}).")


def _in_place(tracer: Tracer, model: nn.Module, inputs: Inputs) -> Groups:
    """Groups that can be cut on the user's own code: its equations hold, and every shape of a trial is as foretold."""
    built = _solved(tracer, inputs)
    for _ in range(1 + 2 * len(tracer.calls)):
        groups = built.groups
        misfit, trials = _tried(model, groups, range(TRIALS if groups.units else 0))
        if misfit is None and numbers.moved(tracer, [found for _, found in trials]):
            misfit, more = _tried(model, groups, range(TRIALS, 2 * TRIALS))
            trials += more
        if misfit is None:
            if not numbers.settle(tracer, model, built, trials):
                return groups
            built = _solved(tracer, inputs)
            continue
        call = tracer.calls[misfit.call]
        if misfit.raised and align(tracer, call):
            built = _solved(tracer, inputs)
            continue
        where = f"{call.name} in '{call.module}'" if call.module else call.name
        why = f"the model's code fixes its size ({where})"
        dims = [Dim(_rows(f.dim, f.rows)) for f in call.facts if f.path in misfit.wrong]
        dims = dims or [dim for of in call.dims for dim in of]
        for dim in dims:
            tracer.fix(dim, why)
        built = _solved(tracer, inputs)
        if (len(groups), groups.units) == (len(built.groups), built.groups.units):
            _give_up(tracer, misfit.call, why)
            built = _solved(tracer, inputs)
    raise TraceError("the trial cuts of this model do not settle; please report the model.")


def _on_operators(tracer: Tracer, inputs: Inputs) -> Groups:
    """Groups that the operators alone allow."""
    while True:
        built = build(tracer, inputs)
        steps = steps_of(tracer, built)
        lost = unfit(built, (), steps)
        for number, why in lost.items():
            group = built.groups[number]
            tracer.labels.fix(built.atoms[group.offset : group.offset + group.units], why)
        if not lost:
            members = tuple(replace(g, step=steps.get(i, 1)) for i, g in enumerate(built.groups))
            return replace(built.groups, members=members, in_place=False)


def _tried(model: nn.Module, groups: Groups, seeds: Iterable[int]) -> tuple[Misfit | None, list[numbers.Trial]]:
    """The first cut that does something else than foretold, and what the others were called with."""
    trials: list[numbers.Trial] = []
    for seed in seeds:
        keep, found = odd_cut(groups, seed), {}  # type: ignore[var-annotated]
        misfit = trial(model, groups, keep, found)
        if misfit is not None:
            return misfit, trials
        trials.append((keep, found))
    return None, trials


def _solved(tracer: Tracer, inputs: Inputs) -> Built:
    """Groups with the edits and proportions that the model's code asks for."""
    while True:
        built = build(tracer, inputs)
        solution = solve(tracer, built)
        if not solution.fix:
            seen = replace(built.groups, proportions=solution.proportions)
            solution.fix = unvisited.torn(tracer, seen, solution.edits)
        steps = steps_of(tracer, built, solution.steps)
        if not solution.fix:
            solution.fix = unfit(built, solution.proportions, steps)
        if not solution.fix:
            solution.edits += unvisited.mirrored(tracer, built.groups, solution.edits)
            built.groups = replace(
                built.groups,
                members=tuple(
                    replace(g, floor=solution.floors.get(i, 1), step=steps.get(i, 1))
                    for i, g in enumerate(built.groups)
                ),
                edits=solution.edits,
                proportions=solution.proportions,
                folds=solution.folds,
            )
            return built
        for g, why in solution.fix.items():
            group = built.groups[g]
            tracer.labels.fix(built.atoms[group.offset : group.offset + group.units], why)


def _give_up(tracer: Tracer, last: int, why: str) -> None:
    """Nothing at the failing operator explains it: fix everything that was computed up to the call before."""
    for call in tracer.calls[: last + 1][::-1]:
        found = [dim for of in call.dims for dim in of if dim.labels is not None]
        free = [dim for dim in found if tracer.labels.resolve(dim.labels).shape[1]]  # type: ignore[arg-type]
        if free:
            for dim in free:
                tracer.fix(dim, why)
            return
    for dims in tracer.initial.values():
        for dim in dims:
            tracer.fix(dim, why)


def _rows(dim: Dim, rows: tuple[int, int] | None) -> Any:
    return dim.labels if rows is None or dim.labels is None else dim.labels[rows[0] : rows[1]]


def odd_cut(groups: Groups, seed: int) -> Tensor:
    """A keep mask that takes random units of every group as far as code allows; the first few, half of them or more.

    Two steps stay where there are two: at a size of one, torch chooses other operators.  The first two seeds leave just
    those, at the end and at the beginning: numbers of rows that the code counts from either side are all cut by one.
    """
    keep = torch.ones(groups.units, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    together = {id: tied for tied in groups.proportions for id in tied}
    for tied in dict.fromkeys(together.get(g.id, (g.id,)) for g in groups):
        quanta = groups.quanta(tied)
        steps = groups[tied[0]].count // quanta[0]
        least = steps // 2 if steps > 3 and seed < TRIALS else 0  # a small network runs fast
        gone = int(torch.randint(least, max(steps - 1, 2), (), generator=generator)) if steps > 1 else 0
        gone = gone if seed > 1 else max(steps - 2, gone)
        for id, quantum in zip(tied, quanta):
            group = groups[id]
            for part in range(group.parts):
                order = torch.randperm(group.count, generator=generator) if seed > 1 else torch.arange(group.count)
                drop = (order.flip(0) if seed == 1 else order)[: gone * quantum]
                keep[group.offset + part * group.count + drop] = False
    return keep


def _named(model: nn.Module, patterns: Iterable[Pattern] | Pattern, option: str) -> list[str]:
    """The parameters and buffers under names, globs or modules."""
    patterns = [patterns] if isinstance(patterns, (str, nn.Module)) else list(patterns)
    modules = {id(m): name for name, m in model.named_modules()}
    names = [n for n, _ in model.named_parameters(remove_duplicate=False)]
    names += [n for n, _ in model.named_buffers(remove_duplicate=False)]
    out: list[str] = []
    for pattern in patterns:
        if isinstance(pattern, nn.Module):
            if id(pattern) not in modules:
                raise InputError(f"{option}= was given a {type(pattern).__name__} that is not part of the model.")
            pattern = modules[id(pattern)]
        found = [n for n in names if pattern == "" or under(n, pattern)]
        if not found:
            hint = did_you_mean(pattern, [*modules.values(), *names])
            raise UnknownNameError(f"{option}='{pattern}' matches no module or parameter of the model.{hint}")
        out += found
    return out


def _only(groups: Groups, names: set[str]) -> Groups:
    """Groups whose producing slices are all among `names`."""

    def inside(group: Group) -> bool:
        producing = group.with_role("out", "depthwise", "index") or group.slices
        return all(s.name in names for s in producing)

    return groups.select([g.id for g in groups if inside(g)], why="not under only=")
