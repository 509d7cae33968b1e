"""Is the shrunk network the silenced original?"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import Group, Groups, VerificationError, Verified
from prunus.core.callbacks import OUT_OF_MEMORY
from prunus.surgery.agreement import flipped, is_real, relative_error, worst_error
from prunus.surgery.reference import Reference, Run, Tensors, cast, folded, observed, reference
from prunus.surgery.stand_ins import jittered, rescaled
from prunus.tracing.apply import Decided, edited, named_tensors, narrow

TOLERANCE = {"float64": 1e-7, "float32": 1e-4}
PATIENCE = 8  # runs with noise on the weights in which no further decision turns out to be a tie
MOST = 40  # of such runs


def prove(model: nn.Module, ref: Reference, unrounded: Tensors | None = None) -> Verified:
    r"""Compare the model as it is now with the reference: ``max |a - b| / max |b|`` over every output.

    NaN and infinities have to stand where they stood; integers and truth values have to be equal, but for ties, and
    so has what they were decided from.

    Raises: `VerificationError` when an error is above 1e-7 (float64) or 1e-4 (float32), is not a number, or when
    there is nothing to compare.
    """
    name = str(ref.dtype).removeprefix("torch.")
    tensors = cast(named_tensors(model), ref.dtype)
    for n, tensor in (unrounded or {}).items():
        if not torch.equal(tensor.to(named_tensors(model)[n].dtype), named_tensors(model)[n]):
            raise VerificationError(f"'{n}' was not scaled as it should have been.")
        tensors[n] = tensor.to(ref.dtype)
    worst = _worst(model, tensors, ref)
    if not worst <= TOLERANCE[name]:
        raise VerificationError(
            f"the cut network differs from the silenced original by {worst:.1e} ({name}, at most {TOLERANCE[name]:.0e})"
        )
    sensitive = _moves(model, tensors, ref)
    return Verified(worst, exact=ref.exact, in_place=True, dtype=name, hidden=ref.runs[-1].hidden, sensitive=sensitive)


def culprits(model: nn.Module, groups: Groups, keep: Tensor) -> list[Group]:
    """The groups that fail the proof when they, and those in proportion to them, are cut alone (nothing is changed)."""
    together = {id: ids for ids in groups.proportions for id in ids}
    bundles = list(dict.fromkeys(together.get(g.id, (g.id,)) for g in groups if not keep[_units(g)].all()))
    found = _culprits(model, groups, keep, bundles)
    return [groups[id] for ids in found for id in ids]


def _units(group: Group) -> slice:
    return slice(group.offset, group.offset + group.units)


def _culprits(model: nn.Module, groups: Groups, keep: Tensor, bundles: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Halve what fails until single bundles are left."""
    if not bundles or not _fails(model, groups, keep, bundles):
        return []
    if len(bundles) == 1:
        return bundles
    half = len(bundles) // 2
    return _culprits(model, groups, keep, bundles[:half]) + _culprits(model, groups, keep, bundles[half:])


def _fails(model: nn.Module, groups: Groups, keep: Tensor, bundles: list[tuple[str, ...]]) -> bool:
    """Whether a cut of these groups alone does not pass the proof."""
    alone = torch.ones_like(keep)
    for id in (id for ids in bundles for id in ids):
        alone[_units(groups[id])] = keep[_units(groups[id])]
    try:
        ref = reference(model, groups, alone)
        plan = groups.plan(alone)
        whole = folded(cast(named_tensors(model), ref.dtype), groups, alone)
        tensors = {n: narrow(t, plan.tensors.get(n)) for n, t in whole.items()}
        with edited(model, plan.edits):
            worst = _worst(model, tensors, ref)
        return not worst <= TOLERANCE[str(ref.dtype).removeprefix("torch.")]
    except OUT_OF_MEMORY:
        raise
    except Exception:  # any failure of forward marks the groups
        return True


def _worst(model: nn.Module, tensors: Tensors, ref: Reference) -> float:
    return max((_error(model, given_of(model, tensors, run), run, ref) for run in ref.runs), default=float("inf"))


def given_of(model: nn.Module, tensors: Tensors, run: Run) -> Tensors:
    """The tensors of a run: those of the network, but for what has other values in it."""
    given = {n: t for n, t in run.given.items() if n in tensors}
    if len(given) < len(run.given):  # a tied tensor may have another of its names first
        first = {id(p): n for n, p in model.named_parameters()}
        every = {n: first[id(p)] for n, p in model.named_parameters(remove_duplicate=False)}
        given |= {every[n]: t for n, t in run.given.items() if n in every}
    return {**tensors, **given}


def _error(model: nn.Module, tensors: Tensors, run: Run, ref: Reference) -> float:
    """How far the network is from a run of the reference."""
    found = _again(model, tensors, run, ref)
    worst = worst_error(found.outputs, run.outputs)
    if len(found.decided_from) == len(run.decided_from):  # where dimensions were cut, the integers alone have to do
        same = [(a, b) for a, b in zip(found.decided_from, run.decided_from) if a.shape == b.shape]
        worst = max(worst, worst_error([a for a, _ in same], [b for _, b in same]))
    return float("inf") if _decides_otherwise(model, tensors, run, ref, found.outputs) else worst


def _decides_otherwise(model: nn.Module, tensors: Tensors, run: Run, ref: Reference, found: tuple[Tensor, ...]) -> bool:
    """Whether integers differ that are no ties: what the least noise on the weights turns over is one."""
    left, idle = flipped(found, run.outputs), 0
    for seed in range(MOST):
        many = sum(int(d.sum()) for d in left if d is not None)
        if not many or idle == PATIENCE:
            return many > 0
        other = _again(model, jittered(tensors, seed), run, ref)
        for d, a, b in zip(left, found, other.outputs):
            if d is not None and a.shape == b.shape == d.shape:
                d &= a == b
        idle = idle + 1 if many == sum(int(d.sum()) for d in left if d is not None) else 0
    return True


def _again(model: nn.Module, tensors: Tensors, run: Run, ref: Reference) -> Run:
    """The cut network as the reference was run: what it decided by values is decided again."""
    decides = any(op.decided is not None for op in ref.operators)

    def watch() -> AbstractContextManager[Any]:
        return Decided(ref.operators) if decides else nullcontext()

    return observed(model, tensors, run.inputs, ref.dtype, watch, ref.lower)


def _moves(model: nn.Module, tensors: Tensors, ref: Reference) -> bool:
    """Whether the outputs would show it if what was cut were not as it is: else the proof could not have failed."""
    run, names = ref.runs[-1], [n for n in ref.cut if n in tensors and tensors[n].is_floating_point()]
    if not names:
        return True

    def other(tensors: Tensors, dtype: torch.dtype, names: list[str]) -> Tensors:
        whole = cast(given_of(model, tensors, run), dtype)
        return {**whole, **rescaled({n: whole[n] for n in names})}

    if ref.dtype is torch.float64:  # first the fast way, for what moves far more than that precision's rounding
        few = [n for n in names if tensors[n].dim() < 2]
        single = other(named_tensors(model), torch.float32, few or names)
        if _apart(model, single, run, replace(ref, dtype=torch.float32)):
            return True
    return _apart(model, other(tensors, ref.dtype, names), run, ref) is not False


def _apart(model: nn.Module, tensors: Tensors, run: Run, ref: Reference) -> bool | None:
    """Whether real outputs are further from a run than ten times what a proof allows; None where it runs otherwise."""
    try:
        found = _again(model, tensors, run, ref)
    except OUT_OF_MEMORY:
        raise
    except Exception:  # what the model's code decides by values turned over
        return None
    if len(found.decided_from) != len(run.decided_from):
        return None
    least = 10 * TOLERANCE[str(ref.dtype).removeprefix("torch.")]
    pairs = zip((*found.outputs, *found.decided_from), (*run.outputs, *run.decided_from))
    return any(relative_error(a, b) > least for a, b in pairs if is_real(b) and b.isfinite().any())
