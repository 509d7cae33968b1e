"""Sizes that a kernel takes in multiples alone (16 bytes, say): a step for the groups that reach it, found by trial."""

from __future__ import annotations

import math
from collections.abc import Mapping

from prunus.core.proportions import quanta_of
from prunus.tracing.build import Built
from prunus.tracing.calls import Call, Dims
from prunus.tracing.tracer import Tracer

STEPS = (8, 16)  # that are tried


def align(tracer: Tracer, call: Call) -> bool:
    """Whether to try again with larger steps for what reaches a kernel that has refused a size."""
    if call.facts:  # sizes among its arguments are reason enough
        return False
    tried = tracer.aligned.get(call.name, 0)
    step = next((step for step in STEPS if step > tried), None) if tried != 1 else None
    tracer.aligned[call.name] = step or 1  # one: no step helps
    return step is not None


def steps_of(tracer: Tracer, built: Built, known: Mapping[int, int] | None = None) -> dict[int, int]:
    """Per group (by number), what the kept counts are multiples of: `known` steps, and those that kernels ask for."""
    known = known or {}
    if not any(tracer.aligned.get(call.name, 1) > 1 for call in tracer.calls):
        return dict(known)
    dims_of: dict[int, Dims] = {
        tracer.numbers[t]: tracer.initial[n] for n, t in tracer.tensors.items() if t in tracer.numbers
    }
    found: dict[int, int] = {}
    owner = [number for number, group in enumerate(built.groups) for _ in range(group.units)]
    for call in tracer.calls:
        step = tracer.aligned.get(call.name, 1)
        reach = [*call.dims, *(dims_of.get(number, []) for number in call.reads)] if step > 1 else []
        for axis in {built.axes(dim) for dims in reach for dim in dims} - {None}:
            matrix = built.groups.axes[axis]  # type: ignore[index]
            for number in {owner[unit] for unit in matrix[matrix >= 0].unique().tolist()}:
                found[number] = math.lcm(found.get(number, 1), step)
        dims_of.update(zip(call.writes, call.dims))
    steps = {number: math.gcd(step, built.groups[number].count) for number, step in found.items()}
    return steps | {number: math.lcm(step, steps.get(number, 1)) for number, step in known.items()}


def unfit(built: Built, proportions: tuple[tuple[str, ...], ...], steps: dict[int, int]) -> dict[int, str]:
    """Groups that no step can be taken from, by themselves or with those in proportion, and the reason."""
    number = {group.id: i for i, group in enumerate(built.groups)}
    together = {id: ids for ids in proportions for id in ids}
    out: dict[int, str] = {}
    for i, step in steps.items():
        ids = together.get(built.groups[i].id, (built.groups[i].id,))
        counts = [built.groups[id].count for id in ids]
        quanta = quanta_of(counts, [steps.get(number[id], 1) for id in ids])
        if any(n % quantum or n == quantum for n, quantum in zip(counts, quanta)):
            out |= {number[id]: f"it could only be cut in multiples of {step}" for id in ids}
    return out
