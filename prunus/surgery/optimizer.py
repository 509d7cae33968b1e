"""The optimizer follows the cut: its state is sliced like the parameters, and it goes on."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.utils._pytree import tree_map_only

from prunus.core import InputError, Plan, TensorPlan
from prunus.core.checks import Kind, a_module, check_arguments, optional
from prunus.core.undo import all_or_nothing
from prunus.surgery.memory import plan_of
from prunus.tracing.apply import narrow

NAMES = Kind("names of parameters", lambda v: isinstance(v, Collection) and all(isinstance(n, str) for n in v))


def check_holds(optimizers: Iterable[Optimizer], model: nn.Module, names: Iterable[str]) -> None:
    """Raise `InputError` unless all trainable parameters of `names` are in `optimizers` that can follow a cut."""
    check_arguments(locals(), names=NAMES)
    optimizers = tuple(optimizers)
    if any(isinstance(optimizer, LBFGS) for optimizer in optimizers):
        raise InputError(
            "LBFGS keeps one flat history over all parameters, which cannot follow a cut: cut without optimizer=, "
            "then make a new one."
        )
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    own = _added_biases(model)
    parameters = dict(model.named_parameters())
    moved = [n for n in names if n in parameters and parameters[n].requires_grad and n not in own]
    missing = [n for n in moved if id(parameters[n]) not in held]
    if missing:
        first = ", ".join(f"'{n}'" for n in missing[:3])
        raise InputError(
            f"the optimizer does not hold {len(missing)} of the {len(moved)} trainable parameters that are to be cut: "
            f"{first}{' ...' if len(missing) > 3 else ''}. Give the optimizer made from this very model's parameters "
            "(not a copy's; all of them where there are several), or set requires_grad_(False) on what is not trained."
        )


def slice_optimizer_(
    optimizers: Iterable[Optimizer], model: nn.Module, plan: Plan, *, was: nn.Module | None = None
) -> tuple[str, ...]:
    r"""Bring the state of optimizers to the network that `plan` left: all of it, or, when anything fails, none.

    With :math:`K_d` the kept indices of dimension :math:`d` of a parameter, every tensor of its state that has the
    parameter's old shape (momentum, moments, sums of squares) becomes

    .. math:: m \leftarrow m[K_0, K_1, \dots],

    and so do factored statistics, along the dimensions that they have.  Scalars (``step``), parameter groups and
    hyperparameters stay.  Biases that `absorb_` added join their weight's parameter group.

    Args:
        model: the network after the cut.
        plan: the plan of the report, in the coordinates of the network before the cut.
        was: the network that the optimizers hold, when `model` is a rewritten one: parameter groups and state are then
            bound to the parameters of the same qualified names.

    Returns: notes, one for every parameter whose state had a shape that does not tell how to slice it: it was dropped,
    and begins anew.
    Raises: `InputError` when `model` lacks a parameter that an optimizer holds.

    >>> net = nn.Linear(2, 3)
    >>> import torch
    >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    >>> net(torch.ones(1, 2)).sum().backward(); sgd.step()
    >>> plan = Plan(tensors={"weight": TensorPlan((3, 2), {0: (0, 2)})})
    >>> net.weight.data = net.weight.data[[0, 2]]
    >>> slice_optimizer_([sgd], net, plan)
    ()
    >>> sgd.state[net.weight]["momentum_buffer"].shape
    torch.Size([2, 2])
    """
    check_arguments(locals(), was=optional(a_module))
    names = {id(p): name for name, p in (was or model).named_parameters()}
    new = dict(model.named_parameters())
    notes: list[str] = []
    done = []
    for optimizer in optimizers:
        states, groups = [], []
        for group in optimizer.param_groups:
            members = []
            for p in group["params"]:
                name = names.get(id(p))
                q = p if name is None else _same_name(new, name)
                members.append(q)
                cut = None if name is None else plan.tensors.get(name)
                if p in optimizer.state:
                    states.append((p, q, _sliced(optimizer.state[p], cut, name or "", notes)))
            groups.append(members + _adopted(model, new, members))
        done.append((optimizer, states, groups))
    with all_or_nothing(*(optimizer for optimizer, _, _ in done)):
        for optimizer, states, groups in done:
            for p, _, _ in states:
                del optimizer.state[p]
            optimizer.state.update({q: state for _, q, state in states if state is not None})
            for group, members in zip(optimizer.param_groups, groups, strict=True):
                group["params"][:] = members
        return tuple(notes)


def _same_name(new: Mapping[str, nn.Parameter], name: str) -> nn.Parameter:
    if name not in new:
        raise InputError(
            f"the rewritten network has no parameter '{name}', which the optimizer holds; make a new optimizer."
        )
    return new[name]


def _sliced(state: Mapping[str, Any], cut: TensorPlan | None, name: str, notes: list[str]) -> dict[str, Any] | None:
    """The state of one parameter after its cut; None, with a note, when shapes do not tell."""
    if cut is None:
        return dict(state)
    out = {}
    for key, value in state.items():
        try:
            out[key] = tree_map_only(Tensor, lambda t: _slice(t, cut), value)
        except _Untold as shape:
            notes.append(
                f"the optimizer's state of '{name}' was dropped and begins anew: '{key}' has the shape {shape}, which "
                f"does not tell how it follows the cut of {cut.shape}."
            )
            return None
    return out


class _Untold(Exception):
    pass


def _slice(t: Tensor, cut: TensorPlan) -> Tensor:
    """One tensor of the state: of the parameter's shape, or with dimensions that are one, or with one left out."""
    if tuple(t.shape) == cut.shape:
        return narrow(t, cut)
    if t.numel() == 1:
        return t
    if t.dim() == len(cut.shape) and all(n in (1, old) for n, old in zip(t.shape, cut.shape)):
        return narrow(t, TensorPlan(tuple(t.shape), {d: k for d, k in cut.kept.items() if t.shape[d] > 1}))
    answers: list[TensorPlan] = []
    for left_out in range(len(cut.shape)):
        rest = [d for d in range(len(cut.shape)) if d != left_out]
        if tuple(t.shape) == tuple(cut.shape[d] for d in rest):
            kept = {i: cut.kept[d] for i, d in enumerate(rest) if d in cut.kept}
            answers.append(TensorPlan(tuple(t.shape), kept))
    if not answers or any(answer != answers[0] for answer in answers):
        raise _Untold(tuple(t.shape))
    return narrow(t, answers[0])


def _added_biases(model: nn.Module) -> set[str]:
    plan = plan_of(model)
    return {a.name for a in plan.added if a.kind == "bias"} if plan is not None else set()


def _adopted(model: nn.Module, new: Mapping[str, nn.Parameter], members: list[nn.Parameter]) -> list[nn.Parameter]:
    """The added biases whose weight is among `members`, unless they are there already."""
    held = {id(p) for p in members}
    found = []
    for name in sorted(_added_biases(model)):
        weight = new.get(f"{name.rpartition('.')[0]}.weight")
        if id(weight) in held and name in new and id(new[name]) not in held:
            found.append(new[name])
    return found
