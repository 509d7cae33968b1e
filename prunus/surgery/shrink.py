"""The physical cut: in place on the user's own module, proven, or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from prunus.core import Edit, Groups, InputError, Plan, Report, Scaled, VerificationError, Verified
from prunus.core.callbacks import OUT_OF_MEMORY
from prunus.core.checks import check_arguments
from prunus.core.places import set_place
from prunus.core.running import has_values
from prunus.core.stepping import plain_optimizers
from prunus.core.undo import all_or_nothing, replace_data
from prunus.core.wrappers import check_whole
from prunus.surgery.attached import check_cuttable
from prunus.surgery.memory import memory_format, remember_
from prunus.surgery.optimizer import check_holds, slice_optimizer_
from prunus.surgery.prove import culprits, prove
from prunus.surgery.reference import Reference, reference, rescaled, scalings
from prunus.surgery.rewrite import rewrite
from prunus.surgery.select import drop_identities_
from prunus.tracing.apply import named_tensors, narrow
from prunus.version import __version__

REWRITTEN = "the model's own code cannot follow this cut: report.model is its recorded graph, a RewrittenModule."


def shrink_(
    model: nn.Module,
    groups: Groups,
    plan: Plan,
    *,
    verify: bool = True,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
) -> Report:
    r"""Remove for good what `plan` does not keep, in place, and prove it: use ``report.model``.

    Parameters, buffers and gradients are narrowed; parameters keep their identity, names and ties; the integer
    attributes that forward reads follow.  Groups traced with ``in_place=False`` give a rewritten network instead, and
    the model is not changed.  The proof: with :math:`f_0` the original in which every removed unit's own
    parameters and its consumers' columns are zero, and :math:`f` the model after the cut, both in float64 and
    evaluation mode,

    .. math:: \max |f(x) - f_0(x)| \,/\, \max |f_0(x)| \le 10^{-7}

    on the example inputs and on noise of the same shapes.

    Args:
        model: the traced model (or a copy of it).
        groups: what `trace` returned for it.
        plan: the kept units; build it with `allocate`, or edit one by hand.
        verify: False skips the proof; the report then says ``verified=None``.
        optimizer: one or several in whose training the cut falls; their state is sliced alike (`slice_optimizer_`).

    Raises: `InputError` when the plan, the groups or the optimizer are of another network, `VerificationError` when the
    proof fails, naming the groups; the model and the optimizer are then as they were.

    >>> import prunus, torch
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> groups = prunus.trace(net, torch.zeros(1, 3, 8, 8))
    >>> report = shrink_(net, groups, prunus.Plan({"0": prunus.GroupPlan(8, (0, 3, 5))}))
    >>> net[2].weight.shape
    torch.Size([4, 3, 3, 3])
    """
    check_arguments(locals())
    check_same_network(model, groups)
    optimizers = plain_optimizers(optimizer) if optimizer is not None else ()
    with all_or_nothing(model, *optimizers) as before:
        return _shrunk(model, groups.bind(model), plan, verify, optimizers, before.restore)


def _shrunk(
    model: nn.Module,
    groups: Groups,
    plan: Plan,
    verify: bool,
    optimizers: tuple[Optimizer, ...],
    undo: Callable[[], None],
) -> Report:
    keep = groups.mask(plan)
    for group in groups:
        if not keep[group.offset : group.offset + group.units].any():
            raise InputError(
                f"the plan keeps no unit of group '{group.id}'; a group cannot be emptied, keep at least one."
            )
    full = replace(groups.plan(keep), version=__version__, memory_format=memory_format(model))
    full = replace(full, scaled=scalings(groups, keep))
    if optimizers:
        check_holds(optimizers, model, full.tensors)
    real = all(has_values(t) for t in [*named_tensors(model).values(), *groups.inputs.tensors])
    ref = reference(model, groups, keep) if verify and real else None
    cut = _cut_in_place if groups.in_place else _cut_by_rewriting
    smaller, verified, notes = cut(model, groups, keep, full, ref, optimizers, undo)
    if verify and not real:
        notes += ("not verified: tensors on the meta device, and fake ones, have no values to compare.",)
    notes += verified.notes if verified is not None else ()
    return Report(
        model=smaller,
        in_place=groups.in_place,
        before=groups.costs(),
        after=groups.costs(keep),
        plan=full,
        verified=verified,
        left_alone=groups.fixed,
        notes=notes,
    )


Cut = tuple[nn.Module, Verified | None, tuple[str, ...]]


def _cut_in_place(
    model: nn.Module,
    groups: Groups,
    keep: Tensor,
    full: Plan,
    ref: Reference | None,
    optimizers: tuple[Optimizer, ...],
    undo: Callable[[], None],
) -> Cut:
    """The user's own module, narrowed."""
    unrounded = _folded_exactly(model, full)
    remember_(model, full)  # while what it remembers can be compared with the tensors
    fold_(model, full.scaled)
    apply_(model, full)
    clear_caches_(model, groups)
    verified = _proven(model, ref, groups, keep, undo, unrounded) if ref is not None else None
    notes = slice_optimizer_(optimizers, model, full)
    drop_identities_(model)
    return model, verified, notes


def _cut_by_rewriting(
    model: nn.Module,
    groups: Groups,
    keep: Tensor,
    full: Plan,
    ref: Reference | None,
    optimizers: tuple[Optimizer, ...],
    undo: Callable[[], None],
) -> Cut:
    """The recorded operators with narrowed parameters; the user's module stays as it is."""
    rewritten = rewrite(model, groups, full)
    verified = replace(prove(rewritten, ref), in_place=False) if ref is not None else None
    notes = slice_optimizer_(optimizers, rewritten, full, was=model)
    return rewritten, verified, (*notes, REWRITTEN, *rewritten.program.notes)


def fold_(model: nn.Module, scaled: Iterable[Scaled]) -> None:
    """Make good in the weights what forward computes from sizes."""
    tensors = named_tensors(model)
    exact = rescaled({s.name: tensors[s.name].detach().double() for s in scaled}, scaled)
    for name, value in exact.items():
        tensors[name].data = value.to(tensors[name].dtype)


def _folded_exactly(model: nn.Module, full: Plan) -> dict[str, Tensor]:
    """What `fold_` changes, in float64 and narrowed: the proof is of the cut, not of the rounding of scaled weights."""
    tensors = named_tensors(model)
    exact = rescaled({s.name: tensors[s.name].detach().double() for s in full.scaled}, full.scaled)
    return {n: narrow(value, full.tensors.get(n)) for n, value in exact.items()}


def clear_caches_(model: nn.Module, groups: Groups) -> None:
    """Forget what forward had cached: it is of the old sizes, and the next forward fills it again."""
    for module, attribute in groups.caches:
        vars(model.get_submodule(module))[attribute].clear()


def _proven(
    model: nn.Module,
    ref: Reference,
    groups: Groups,
    keep: Tensor,
    undo: Callable[[], None],
    unrounded: dict[str, Tensor],
) -> Any:
    """Prove the cut, or say which groups are to blame."""
    try:
        return prove(model, ref, unrounded)
    except VerificationError as error:
        message = str(error)
    except OUT_OF_MEMORY:
        raise
    except Exception as error:  # forward itself may fail on sizes it was not written for
        message = f"forward fails on the cut network: {type(error).__name__}: {error}"
    undo()
    blamed = [group.id for group in culprits(model, groups, keep)]
    named = ", ".join(f"'{id}'" for id in blamed) or "none alone, only together"
    raise VerificationError(
        f"{message}. The model is as it was. Groups that fail when cut alone: {named}. "
        f"Leave them alone with freeze=, and please report the architecture.",
        blamed,
    )


def check_same_network(model: nn.Module, groups: Groups) -> None:
    """Raise `InputError` for groups of another network, or of before its last cut, and for a network with gates."""
    check_whole(model)
    check_cuttable(model)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, traced in groups.tensors.items():
        found = tuple(tensors[name].shape) if name in tensors else None
        if found != traced.shape:
            raise InputError(
                f"the groups are not of this network as it is now: '{name}' was traced as {traced.shape}, here it is "
                f"{'missing' if found is None else found}. Trace the model again: groups are void after a cut."
            )
    if new := sorted(set(dict(model.named_parameters())) - set(groups.tensors)):
        raise InputError(
            f"the network has parameters that were not traced: {', '.join(new[:3])}. Trace the model again."
        )


def apply_(model: nn.Module, plan: Plan) -> None:
    """Narrow every tensor, with its gradient, and set every attribute of `plan`."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    edits = list(plan.edits) + _cosmetic(model, plan)
    for name, cut in plan.tensors.items():
        tensor, grad = tensors[name], tensors[name].grad
        replace_data(tensor, narrow(tensor.data, cut))
        tensor.grad = None if grad is None else narrow(grad, cut)
    _set(model, edits)


def set_attributes_(model: nn.Module, plan: Plan) -> None:
    """Set every attribute of `plan` on a network whose tensors are narrowed already."""
    _set(model, list(plan.edits) + _cosmetic(model, plan))


def _set(model: nn.Module, edits: Iterable[Edit]) -> None:
    for e in edits:
        set_place(model.get_submodule(e.module), e.attribute, e.new)


# Attributes that torch's own layers print but never read in forward, and the weight's dimension they tell.
_PRINTED = {"num_features": 0, "num_channels": 0, "in_features": 1, "out_features": 0, "embedding_dim": 1}


def _cosmetic(model: nn.Module, plan: Plan) -> list[Edit]:
    """`in_channels`, `num_features` ... of torch's layers: forward does not read them, people do."""
    out = []
    groups = {e.module: e.new for e in plan.edits if e.attribute == "groups"}
    for name, cut in plan.tensors.items():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        if leaf != "weight":
            continue
        sizes = [len(cut.kept.get(d, range(n))) for d, n in enumerate(cut.shape)]
        for attribute, dim in _PRINTED.items():
            value = getattr(module, attribute, None)
            if type(value) is int and dim < len(sizes) and value == cut.shape[dim]:
                out.append(Edit(path, attribute, value, sizes[dim]))
        if type(getattr(module, "in_channels", None)) is int and len(sizes) > 2:
            many = groups.get(path, getattr(module, "groups", 1))
            transposed = getattr(module, "transposed", False)
            ins, outs = (sizes[0], sizes[1] * many) if transposed else (sizes[1] * many, sizes[0])
            out.append(Edit(path, "in_channels", module.in_channels, ins))  # type: ignore[arg-type]
            out.append(Edit(path, "out_channels", module.out_channels, outs))  # type: ignore[arg-type]
    return [e for e in out if e.old != e.new]
