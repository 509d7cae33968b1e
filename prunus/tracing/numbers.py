"""Numbers that forward computes from its sizes, found by trial: what else can follow ``float(d)``, numpy, or rounding?

A number among the arguments of an operator that is another one in a narrowed network, though not where weights alone
are others, comes from a size.  Where it is a power of one size, the equation is written down as if it had been
followed; else the groups that move it are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import Groups
from prunus.core.callbacks import OUT_OF_MEMORY
from prunus.tracing.apply import Checker, Numbers, named_tensors, run, trial
from prunus.tracing.build import Built
from prunus.tracing.calls import FACTORS, Call, Dim, Equation
from prunus.tracing.symbols import Computed, Size
from prunus.tracing.tracer import Tracer

Place = tuple[int, Any]  # number of the call, argument
Trial = tuple[Tensor, Numbers]  # a keep mask, and the numbers of its narrowed network
MOVES, FITS = 1e-9, 1e-6  # relative differences; numbers in tensors are of single precision


def moved(tracer: Tracer, trials: Iterable[Numbers]) -> list[Place]:
    """The numbers that are other ones in other runs, and that no expression explains."""
    found = {}
    for i, call in enumerate(tracer.calls):
        if call.numbers and i not in tracer.explained:
            found.update({(i, place): value for place, value in call.numbers})
    return [at for at, value in found.items() if any(not _same(n.get(at, value), value) for n in trials)]


def _same(a: float, b: float) -> bool:
    return a == b or abs(a - b) <= MOVES * abs(b) or (a != a and b != b)


def settle(tracer: Tracer, model: nn.Module, built: Built, trials: list[Trial]) -> bool:
    """Write down the equations of numbers that are powers of one size, fix what moves the others; whether any moved."""
    places = moved(tracer, [found for _, found in trials])
    ours = _of_values(model, built.groups, tracer) if places else set()
    places = [at for at in places if at not in ours]
    left = _explain(tracer, built, places, trials)
    if left:
        call = tracer.calls[left[0][0]]
        where = f"{call.name} in '{call.module}'" if call.module else call.name

        def moves(keep: Tensor) -> bool:
            found: Numbers = {}
            trial(model, built.groups, keep, found)
            return bool(set(left).intersection(moved(tracer, [found])))

        keep = next(keep for keep, found in trials if set(left).intersection(moved(tracer, [found])))
        blamed = _blame(built.groups, keep, moves)
        if not blamed:  # no group alone: the proof has to decide
            tracer.explained.update(at for at, _ in left)
        for id in blamed:
            group = built.groups[id]
            atoms = built.atoms[group.offset : group.offset + group.units]
            tracer.labels.fix(atoms, f"the model computes a number from its size ({where})")
    return bool(places)


def _of_values(model: nn.Module, groups: Groups, tracer: Tracer) -> set[Place]:
    """The numbers that are other ones with other weights of the same sizes."""
    tensors = {
        name: t.detach() * torch.linspace(0.5, 1.5, t.numel(), device=t.device).view(t.shape).to(t.dtype)
        if t.is_floating_point()
        else t.detach()
        for name, t in named_tensors(model).items()
    }
    checker = Checker(groups, torch.ones(groups.units, dtype=torch.bool))
    try:
        run(model, tensors, groups.inputs, checker)
    except OUT_OF_MEMORY:
        raise
    except Exception:  # what forward does depends on values: so may all its numbers
        return {(i, place) for i, call in enumerate(tracer.calls) for place, _ in call.numbers}
    return set(moved(tracer, [checker.numbers]))


def _explain(tracer: Tracer, built: Built, places: list[Place], trials: list[Trial]) -> list[Place]:
    """Write down the equations of numbers that are powers of one size; returns those that are not."""
    left = []
    alive = [[rows.double().mean() for rows in built.groups.alive(keep)] for keep, _ in trials]
    kept = torch.tensor(alive, dtype=torch.float64).log()  # (trials, axes): how much of every axis is left
    for at in places:
        call = tracer.calls[at[0]]
        old = dict(call.numbers)[at[1]]
        ratio = torch.tensor([n[at] / old if old and at in n else math.nan for _, n in trials], dtype=torch.float64)
        found = _power(tracer, built, at[0], kept, ratio.log())
        if found is None:
            left.append(at)
            continue
        dim, power = found
        assert dim.labels is not None
        expression = Computed("pow", (Size(dim, len(dim.labels)), power))
        factor = 1 if at[1] == "scale" else FACTORS.get(call.name, 0) if at[1] == 1 else 0
        tracer.equations.append(Equation(expression, old, at[0], factor))
        tracer.explained.add(at[0])
    return left


def _power(tracer: Tracer, built: Built, at: int, kept: Tensor, ratio: Tensor) -> tuple[Dim, float] | None:
    """The nearest dimension of whose size a number is a power, and the power."""
    for dim in _nearest(tracer.calls, at):
        axis = built.axes(dim)
        if axis is None or len(kept[:, axis].unique()) < 2:
            continue
        cut = kept[:, axis] != 0
        powers = ratio[cut] / kept[cut, axis]
        power = round(float(powers[0]) * 12) / 12 if bool(powers.isfinite().all()) else 0.0
        if power and bool(((ratio - power * kept[:, axis]).abs() <= FITS).all()):
            return dim, power
    return None


def _nearest(calls: list[Call], at: int) -> Iterator[Dim]:
    """The labelled dimensions of a call, then those that products were summed over before, and after."""
    yield from (dim for dims in calls[at].dims for dim in dims if dim.labels is not None)
    for call in (*reversed(calls[:at]), *calls[at:]):
        yield from call.contracted
    for call in (*reversed(calls[:at]), *calls[at:]):
        yield from (dim for dims in call.dims for dim in dims if dim.labels is not None)


def _blame(groups: Groups, keep: Tensor, moves: Callable[[Tensor], bool]) -> set[str]:
    """The groups that, cut alone with those in proportion, make a number another one."""
    together = {id: ids for ids in groups.proportions for id in ids}
    bundles = list(dict.fromkeys(together.get(g.id, (g.id,)) for g in groups))

    def search(some: list[tuple[str, ...]]) -> set[str]:
        alone = torch.ones_like(keep)
        for group in (groups[id] for ids in some for id in ids):
            units = slice(group.offset, group.offset + group.units)
            alone[units] = keep[units]
        if not some or not moves(alone):
            return set()
        half = len(some) // 2
        return set(some[0]) if len(some) == 1 else search(some[:half]) | search(some[half:])

    return search(bundles)
