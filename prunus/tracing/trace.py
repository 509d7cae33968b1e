"""What is coupled?  `trace` follows one forward and returns the groups of units that can be cut in place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import EditRule, Group, Groups, InputError, Inputs, TraceError, UnknownNameError, did_you_mean, under
from prunus.tracing import rules
from prunus.tracing.apply import evaluating, output_tensors, trial, unchanged
from prunus.tracing.build import build
from prunus.tracing.tracer import Dim, Tracer

Pattern = str | nn.Module
TRIALS = 3  # cuts that every set of groups is tried with; sizes that agree by chance in all of them are rare


def trace(
    model: nn.Module,
    example_inputs: Any,
    *,
    freeze: Iterable[Pattern] | Pattern = (),
    only: Iterable[Pattern] | Pattern = (),
) -> Groups:
    r"""Find what in `model` is coupled: the groups of units that must be cut together.

    The user's own forward runs on `example_inputs` in evaluation mode; every ATen call is seen, and labels
    saying which units an index depends on are moved through it.  Nothing is asked of the user and the model is not
    changed.

    Args:
        model: any `nn.Module`.
        example_inputs: what forward takes: a tensor, a tuple of positional inputs, or `Inputs`.
        freeze: names, globs or modules; no parameter under them changes shape.
        only: names, globs or modules; only groups whose producing slices are all under them.

    Returns: `Groups`, with units in order of execution; ``groups.fixed`` says what was left alone and why.

    Raises: `InputError` for a pattern that matches nothing; `TraceError` when forward itself fails on the example.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))
    >>> groups = trace(net, torch.zeros(1, 3, 8, 8))
    >>> [(g.id, g.units) for g in groups]
    [('0', 8)]
    >>> [(s.name, s.role) for s in groups["0"].with_role("out", "in")]
    [('0.weight', 'out'), ('4.weight', 'in')]
    """
    inputs = Inputs.of(example_inputs)
    tracer = record(model, inputs)
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name in _named(model, freeze, "freeze"):
        for dim in tracer.initial[tracer.names[tensors[name]]]:
            tracer.fix(dim, "frozen by the user")
    groups = _in_place(tracer, model, inputs)
    if only:
        groups = _only(groups, set(_named(model, only, "only")))
    return groups


def record(model: nn.Module, inputs: Inputs, *, keep_arguments: bool = False) -> Tracer:
    """Run forward under the tracer, fix what reaches an output and what the example does not visit."""
    tracer = Tracer(model, rules.find, keep_arguments=keep_arguments)
    with unchanged(model), evaluating(model), tracer.recording():
        try:
            out = inputs(model)
        except Exception as error:  # the model's own code may raise anything
            shapes = [s["shape"] for s in inputs.signature()]
            raise TraceError(
                f"the model's forward failed on the example inputs {shapes}: {type(error).__name__}: {error}. "
                "Give example_inputs that `model(*example_inputs)` accepts."
            ) from error
    for tensor in output_tensors(out):
        tracer.outputs.append(tracer.number(tensor))
        for dim in tracer.of(tensor):
            tracer.fix(dim, "it is an output of the model")
    visited = {name for call in tracer.calls for name in call.parameters}
    for name, dims in tracer.initial.items():
        if name not in visited:
            for dim in dims:
                tracer.fix(dim, "the example does not visit it")
    return tracer


def _in_place(tracer: Tracer, model: nn.Module, inputs: Inputs) -> Groups:
    """Try a cut on the user's own code; whatever sizes it cannot follow is fixed, until every shape is as foretold."""
    groups = build(tracer, inputs)
    for _ in range(1 + 2 * len(tracer.calls)):
        groups = replace(groups, edits=_edit_rules(tracer, groups))
        misfits = (trial(model, groups, _odd_cut(groups, seed)) for seed in range(TRIALS))
        misfit = next((m for m in misfits if m is not None), None)
        if misfit is None or not groups.units:
            return groups
        call = tracer.calls[misfit.call]
        where = f"{call.name} in '{call.module}'" if call.module else call.name
        why = f"the model's code fixes its size ({where})"
        dims = [Dim(_rows(f.dim, f.rows)) for f in call.facts if f.path in misfit.wrong]
        dims = dims or [dim for of in call.dims for dim in of]
        for dim in dims:
            tracer.fix(dim, why)
        before, groups = groups, build(tracer, inputs)
        if (len(groups), groups.units) == (len(before), before.units):
            _give_up(tracer, misfit.call, why)
            groups = build(tracer, inputs)
    raise TraceError("the trial cuts of this model do not settle; please report the model.")


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


def _odd_cut(groups: Groups, seed: int) -> Tensor:
    """A keep mask that takes random units, and a random number of them, from every group."""
    keep = torch.ones(groups.units, dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for group in groups:
        count = int(torch.randint(0, group.units, (), generator=generator)) if group.units > 1 else 0
        drop = torch.randperm(group.units, generator=generator)[:count]
        keep[group.offset + drop] = False
    return keep


def _edit_rules(tracer: Tracer, groups: Groups) -> tuple[EditRule, ...]:
    """Attributes that reached an operator as an integer which has to follow the cut."""
    found: dict[tuple[str, str], EditRule] = {}
    for call, op in zip(tracer.calls, groups.operators):
        for value in {fact.value for fact in op.facts}:
            facts = [fact for fact in op.facts if fact.value == value]
            origins = [origin for origin in call.origins if origin.value == value]
            for fact, origin in zip(facts, origins[-len(facts) :]):
                rule = EditRule(origin.module, origin.attribute, value, fact.axis, fact.rows)
                found.setdefault((origin.module, origin.attribute), rule)
    return tuple(found.values())


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
