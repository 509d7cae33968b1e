"""The silenced original: what a cut network must give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import Groups, Inputs, Operator, Scaled, VerificationError
from prunus.core.callbacks import OUT_OF_MEMORY
from prunus.core.running import laid_out_as
from prunus.surgery.agreement import Behind, is_real, says_something
from prunus.surgery.finite import all_finite
from prunus.surgery.kept import Kept
from prunus.surgery.precise import Precise
from prunus.surgery.stand_ins import stand_ins
from prunus.tracing.apply import named_tensors, narrow, run


@dataclass(frozen=True)
class Run:
    """What the silenced original gave: its outputs, and the real numbers that integers among them were decided from.

    `given` are parameters, as the cut network has them, that had other values in this run; `hidden` names those that
    are zero in truth.
    """

    inputs: Inputs
    outputs: tuple[Tensor, ...]
    decided_from: tuple[Tensor, ...] = ()
    exact: bool = True
    given: Mapping[str, Tensor] = field(default_factory=dict)
    hidden: tuple[str, ...] = ()
    lower: bool = False  # whether anything was to be computed in a lower precision

    @property
    def says_something(self) -> bool:
        return says_something((*self.outputs, *self.decided_from))


@dataclass(frozen=True)
class Reference:
    """The silenced original on every set of inputs, computed before the cut; `cut` names the tensors to be narrowed."""

    runs: tuple[Run, ...]
    dtype: torch.dtype
    operators: tuple[Operator, ...] = ()
    cut: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether silence alone told the outcome."""
        return all(run.exact for run in self.runs)

    @property
    def lower(self) -> bool:
        """Whether the model's code asks for a lower precision than the proof's."""
        return any(run.lower for run in self.runs)


Tensors = Mapping[str, Tensor]
Watch = Callable[[], AbstractContextManager[Any]]


def silenced(
    tensors: Mapping[str, Tensor],
    groups: Groups,
    keep: Tensor,
    dtype: torch.dtype | None = None,
    finite: set[int] | None = None,
) -> dict[str, Tensor]:
    """The tensors (all or some) with every removed unit's own parameters, and its consumers' columns, set to zero.

    Read from the groups' slices, not from the axes that the cut is made by: a second account of the same coupling.
    Tensors in the network's own memory are copied; others, which were made for this, are written in place.  The results
    are cast to `dtype`; into `finite` go the places in memory of those that hold finite numbers alone.
    """
    gone: dict[str, list[tuple[int, Tensor]]] = {}
    own = {}
    for group in groups:
        removed = ~keep[group.offset : group.offset + group.units]
        for s in group.slices if removed.any() else ():
            gone.setdefault(s.name, []).append((s.dim, s.index[removed].reshape(-1)))
            own[s.name] = s.tensor.data_ptr()
    out = {}
    for name, tensor in tensors.items():
        if name in gone and is_real(tensor):
            tensor = tensor.clone() if tensor.data_ptr() == own[name] else tensor
            clean = _zero_(tensor, gone[name])
        else:
            clean = finite is None or not is_real(tensor) or all_finite(tensor)
        out[name] = tensor if dtype is None else _cast(tensor, dtype)
        if finite is not None and clean and tensor.layout is torch.strided:
            finite.add(out[name].data_ptr())
    return out


def _zero_(tensor: Tensor, gone: Iterable[tuple[int, Tensor]]) -> bool:
    """Zeros in the rows of dimensions, and whether all is finite: then products do, the fast way but for the first."""
    for dim, rows in gone:
        if dim:
            left = torch.ones(tensor.shape[dim], dtype=tensor.dtype, device=tensor.device)
            left.index_fill_(0, rows.to(tensor.device), 0)
            tensor.mul_(left.view(-1, *[1] * (tensor.dim() - dim - 1)))
        else:
            tensor.index_fill_(0, rows.to(tensor.device), 0)
    if all_finite(tensor):
        return True
    for dim, rows in gone:
        tensor.index_fill_(dim, rows.to(tensor.device), 0)
    return all_finite(tensor)


def scalings(groups: Groups, keep: Tensor) -> tuple[Scaled, ...]:
    """What makes good in the weights what forward computes from the size of a group (see `Fold`)."""
    out = []
    for fold in groups.folds:
        group = groups[fold.group]
        kept = keep[group.offset : group.offset + group.units]
        factor = float(kept.double().mean()) ** (fold.power / 2)
        # what the group makes for others (values, beside queries and keys) is made good where they read it
        normed = bool(group.with_role("norm_scale"))
        powers = {"norm_scale": 1, "norm_shift": 1} if normed else {"out": 1, "bias": 1, "in": -1}
        for s in group.with_role(*powers) if factor != 1 else ():
            rows = tuple(s.index[kept].reshape(-1).tolist())
            out.append(Scaled(s.name, s.dim, rows, factor ** powers[s.role]))
    return tuple(out)


def rescaled(tensors: Mapping[str, Tensor], scaled: Iterable[Scaled]) -> dict[str, Tensor]:
    """The tensors (all or some) with rows multiplied; others as they are."""
    out = dict(tensors)
    for s in (s for s in scaled if s.name in out):
        tensor = out[s.name]
        index = torch.tensor(s.rows, dtype=torch.long, device=tensor.device)
        out[s.name] = tensor.index_copy(s.dim, index, tensor.index_select(s.dim, index) * s.factor)
    return out


def folded(tensors: Mapping[str, Tensor], groups: Groups, keep: Tensor) -> dict[str, Tensor]:
    """The tensors with what forward computes from the size of a group made good (see `Fold`); others as they are."""
    return rescaled(tensors, scalings(groups, keep))


def reference(model: nn.Module, groups: Groups, keep: Tensor) -> Reference:
    """Run the silenced original, in float64 where every operator has such a kernel, else in float32."""
    plan = groups.plan(keep)

    finite: set[int] = set()

    def silence(tensors: Tensors, dtype: torch.dtype) -> Tensors:
        return silenced(tensors, groups, keep, dtype, finite)

    def cut(tensors: Tensors) -> Tensors:
        return {n: narrow(t, plan.tensors.get(n)) for n, t in folded(tensors, groups, keep).items()}

    for dtype in (torch.float64, torch.float32):
        finite.clear()
        try:
            runs = runs_of(model, groups.inputs, dtype, lambda: Kept(groups, keep, frozenset(finite)), silence, cut)
            return Reference(runs, dtype, groups.operators, tuple(plan.tensors))
        except (RuntimeError, NotImplementedError, TypeError):
            if dtype is torch.float32:
                raise
    raise AssertionError("unreachable")


def runs_of(
    model: nn.Module,
    inputs: Inputs,
    dtype: torch.dtype,
    watch: Watch,
    silence: Callable[[Tensors, torch.dtype], Tensors] | None = None,
    cut: Callable[[Tensors], Tensors] = dict,
) -> tuple[Run, ...]:
    """The original on the example as it is, and on noise with `stand_ins`, as far as it takes them.

    Raises: `VerificationError` when no run gives anything to compare.
    """
    tensors, silence = named_tensors(model), silence or cast
    others: Tensors = cast(stand_ins(model, tensors), dtype)
    hidden = tuple(n for n in others if n.rpartition(".")[2] != "bias" and not tensors[n].any())
    given_to = cut(others)
    silent, others = silence(tensors, dtype), silence(others, dtype)
    runs = [observed(model, silent, inputs, dtype, watch)]
    for given, values in ((other_inputs(inputs), others), (inputs, others), (other_inputs(inputs), {})):
        if given is inputs and not values:
            continue
        try:
            run = observed(model, {**silent, **values}, given, dtype, watch, runs[0].lower)
        except OUT_OF_MEMORY:
            raise
        except Exception:  # the network is not made for it, and its own code may raise anything
            continue
        if run.says_something:
            runs.append(replace(run, given=given_to, hidden=hidden) if values else run)
            break
    if not any(run.says_something for run in runs):
        raise VerificationError(_nothing(runs[0].outputs))
    return tuple(runs)


def _nothing(outputs: tuple[Tensor, ...]) -> str:
    """Why there is nothing to compare."""
    real = [b for b in outputs if is_real(b) and b.numel()]
    if not real:
        what = "gives no real numbers (integers, truth values, or nothing)"
    elif not any(bool(b.isfinite().any()) for b in real):
        what = "gives NaN or infinity only"
    else:
        what = "gives zeros only (a last layer at zero, or all that feeds it removed)"
    return (
        f"the network, with the removed units silenced, {what}: nothing can be proven. Load trained weights, give "
        "example_inputs that lead to other outputs, keep more, or pass verify=False."
    )


def observed(
    model: nn.Module, tensors: Tensors, inputs: Inputs, dtype: torch.dtype, watch: Watch, lower: bool = True
) -> Run:
    """The outputs, and what the integers among them were decided from (then forward is run twice).

    Without `lower`, the model's code is known to ask for no lower precision; if it does here, the outputs tell.
    """
    seen, precise = watch(), Precise(dtype) if lower else None
    outputs = tuple(run_in(model, tensors, inputs, dtype, seen, precise))
    exact, lower = getattr(seen, "exact", True), precise is not None and precise.raised
    if all(map(is_real, outputs)):
        return Run(inputs, outputs, exact=exact, lower=lower)
    behind = Behind()

    @contextmanager
    def both() -> Iterator[None]:
        with watch(), behind:  # which sees what forward calls, not what the watch makes of it
            yield

    outputs = tuple(run_in(model, tensors, inputs, dtype, both(), precise))
    return Run(inputs, outputs, behind.decided(outputs), exact, lower=lower)


def run_in(
    model: nn.Module,
    tensors: Tensors,
    inputs: Inputs,
    dtype: torch.dtype,
    watch: AbstractContextManager[Any],
    precise: Precise | None,
) -> list[Tensor]:
    """The outputs in the precision `dtype`, with `precise` also where the model's code asks for a lower one."""

    @contextmanager
    def watched() -> Iterator[None]:
        with precise or nullcontext(), watch:
            yield

    return run(model, tensors, inputs.to(dtype), watched())


def cast(tensors: Tensors, dtype: torch.dtype) -> dict[str, Tensor]:
    """Real and complex tensors in a precision; others as they are."""
    return {n: _cast(t, dtype) for n, t in tensors.items()}


def _cast(t: Tensor, dtype: torch.dtype) -> Tensor:
    return t.detach().to(dtype.to_complex() if t.is_complex() else dtype) if is_real(t) else t.detach()


def other_inputs(inputs: Inputs) -> Inputs:
    """Other inputs of the same shapes: normal noise for real tensors, the same tensors reversed for integers."""
    generator = torch.Generator().manual_seed(1)

    def change(t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t.flip(-1) if t.dim() and t.layout is torch.strided else t
        noise = torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype).to(t.device)
        return laid_out_as(noise, t)

    return inputs.map(change)
