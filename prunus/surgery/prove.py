"""Is the shrunk network the silenced original?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from prunus.core import Group, Groups, Inputs, Operator, VerificationError, Verified
from prunus.surgery.kept import Kept
from prunus.surgery.precise import Precise, default_dtype
from prunus.tracing.apply import Decided, edited, named_tensors, narrow, run

TOLERANCE = {"float64": 1e-7, "float32": 1e-4}


@dataclass(frozen=True)
class Reference:
    """The outputs of the silenced original on every set of inputs, computed before the cut."""

    inputs: tuple[Inputs, ...]
    outputs: tuple[tuple[Tensor, ...], ...]
    dtype: torch.dtype
    exact: bool = True
    operators: tuple[Operator, ...] = ()


def silenced(tensors: Mapping[str, Tensor], groups: Groups, keep: Tensor) -> dict[str, Tensor]:
    """The tensors with every removed unit's own parameters, and its consumers' columns, set to zero.

    Read from the groups' slices, not from the axes that the cut is made by: a second account of the same coupling.
    """
    out = dict(tensors)
    for group in groups:
        gone = ~keep[group.offset : group.offset + group.units]
        if not gone.any():
            continue
        for s in group.slices:
            tensor = out[s.name]
            if tensor.is_floating_point():
                index = s.index[gone].reshape(-1).to(tensor.device)
                out[s.name] = tensor.index_fill(s.dim, index, 0)
    return out


def folded(tensors: Mapping[str, Tensor], groups: Groups, keep: Tensor) -> dict[str, Tensor]:
    """The tensors with what forward computes from the size of a group made good (see `Fold`); others as they are."""
    out = dict(tensors)
    for fold in groups.folds:
        group = groups[fold.group]
        rows = keep[group.offset : group.offset + group.units]
        factor = float(rows.double().mean()) ** (fold.power / 2)
        # what the group makes for others (values, beside queries and keys) is made good where they read it
        normed = bool(group.with_role("norm_scale"))
        powers = {"norm_scale": 1, "norm_shift": 1} if normed else {"out": 1, "bias": 1, "in": -1}
        for s in group.with_role(*powers) if factor != 1 else ():
            tensor = out[s.name]
            index = s.index[rows].reshape(-1).to(tensor.device)
            scaled = tensor.index_select(s.dim, index) * factor ** powers[s.role]
            out[s.name] = tensor.index_copy(s.dim, index, scaled)
    return out


def reference(model: nn.Module, groups: Groups, keep: Tensor) -> Reference:
    """Run the silenced original, in float64 where every operator has such a kernel, else in float32."""
    for dtype in (torch.float64, torch.float32):
        try:
            tensors = silenced(cast(named_tensors(model), dtype), groups, keep)
            kept = [Kept(groups, keep)]
            inputs, outputs = [groups.inputs], [tuple(run_in(model, tensors, groups.inputs, dtype, kept[0]))]
            noise = on_noise(model, tensors, other_inputs(groups.inputs), dtype, watch := Kept(groups, keep))
            if noise:
                kept.append(watch)
                inputs, outputs = [*inputs, other_inputs(groups.inputs)], [*outputs, noise]
            _something_to_compare(outputs)
            exact = all(watch.exact for watch in kept)
            return Reference(tuple(inputs), tuple(outputs), dtype, exact, groups.operators)
        except (RuntimeError, NotImplementedError, TypeError):
            if dtype is torch.float32:
                raise
    raise AssertionError("unreachable")


def run_in(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    inputs: Inputs,
    dtype: torch.dtype,
    watch: TorchDispatchMode | None = None,
) -> list[Tensor]:
    """The outputs in the precision `dtype` throughout, also where the model's code asks for a lower one."""
    with Precise(dtype), default_dtype(dtype):
        return run(model, tensors, inputs.to(dtype), watch)


def on_noise(
    model: nn.Module, tensors: Mapping[str, Tensor], inputs: Inputs, dtype: torch.dtype, watch: TorchDispatchMode
) -> tuple[Tensor, ...]:
    """The outputs on noise; none when the network is not made for it."""
    try:
        outputs = tuple(run_in(model, tensors, inputs, dtype, watch))
    except Exception:  # the model's own code may raise anything
        return ()
    return outputs if all(bool(torch.isfinite(out).all()) for out in outputs) else ()


def prove(model: nn.Module, ref: Reference, unrounded: Mapping[str, Tensor] | None = None) -> Verified:
    r"""Compare the model as it is now with the reference: ``max |a - b| / max |b|`` over every output.

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
    return Verified(worst, exact=ref.exact, in_place=True, dtype=name)


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
    except Exception:  # any failure of forward marks the groups
        return True


def relative_error(a: Tensor, b: Tensor) -> float:
    """``max |a - b| / max |b|``; infinite when shapes differ, anything is not finite, or there is nothing to compare.

    >>> relative_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    0.5
    >>> nan, nothing = torch.tensor([float("nan")]), torch.ones(0)
    >>> relative_error(nan, nan), relative_error(nothing, nothing)
    (inf, inf)
    """
    if a.shape != b.shape or a.numel() == 0 or not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return float("inf")
    largest = float(b.abs().max())
    difference = float((a - b).abs().max())
    return difference / largest if largest else (0.0 if difference == 0 else float("inf"))


def _worst(model: nn.Module, tensors: Mapping[str, Tensor], ref: Reference) -> float:
    errors, decides = [], any(op.decided is not None for op in ref.operators)
    for inputs, expected in zip(ref.inputs, ref.outputs):
        found = run_in(model, tensors, inputs, ref.dtype, Decided(ref.operators) if decides else None)
        if len(found) != len(expected):
            return float("inf")
        pairs = [(a, b) for a, b in zip(found, expected) if b.is_floating_point()]
        errors += [relative_error(a, b) for a, b in pairs]
    return max(errors, default=float("inf"))


def _something_to_compare(outputs: list[tuple[Tensor, ...]]) -> None:
    """Raise `VerificationError` when every output is zero or empty: agreement on nothing proves nothing."""
    if not any(bool((b != 0).any()) for of in outputs for b in of if b.is_floating_point()):
        raise VerificationError(
            "the network, with the removed units silenced, gives zeros only (a last layer initialised to zero, "
            "or all that "
            "feeds it removed): nothing can be proven. Load trained weights, keep more, or pass verify=False."
        )


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {n: t.detach().to(dtype) if t.is_floating_point() else t.detach() for n, t in tensors.items()}


def other_inputs(inputs: Inputs) -> Inputs:
    """Other inputs of the same shapes: normal noise for real tensors, the same tensors reversed for integers."""
    generator = torch.Generator().manual_seed(1)

    def change(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t.flip(-1) if t.dim() else t
        return torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype).to(t.device)

    return inputs.map(change)
