"""Can a plan be carried out on this network?  Whatever it says, it touches what a cut may touch, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from prunus.core import Added, FileError, Plan
from prunus.core.places import integers
from prunus.surgery.select import attach_

Refuse = Callable[[str], FileError]


def check_fits(model: nn.Module, plan: Plan, path: str | Path) -> None:
    """Raise `FileError` unless the plan in the file `path` can be carried out on the freshly built `model`.

    Tensors have the shapes that the plan cuts; edits are of integers that modules hold, where tracing looks for them;
    what is added has a place and the size of what it belongs to; dropped blocks are modules inside of the model.
    """
    modules = dict(model.named_modules())
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))

    def other(why: str) -> FileError:
        return FileError(f"{path}: the file is of another architecture: {why}")

    gone = [d.module for d in plan.dropped]
    for name in gone:
        if not name or name not in modules:
            raise other(f"there is no block '{name}' to drop here.")
        if any(f"{name}.".startswith(f"{outer}.") for outer in gone if outer != name):
            raise FileError(f"{path}: the plan drops '{name}', which is inside of another block that it drops.")
    changed = [*plan.tensors, *(a.name for a in plan.added), *(f"{e.module}." for e in plan.edits)]
    for name in changed:
        if any(name.startswith(f"{block}.") for block in gone):
            raise FileError(f"{path}: the plan changes '{name.rstrip('.')}', which is inside of a block that it drops.")
    for entry in plan.added:
        _check_added(entry, plan, modules, tensors, other)
    known = {n: tuple(t.shape) for n, t in tensors.items()} | {a.name: a.shape for a in plan.added}
    for name, cut in plan.tensors.items():
        if any(not 0 <= i < cut.shape[d] for d, kept in cut.kept.items() for i in kept):
            raise FileError(f"{path}: the plan keeps indices of '{name}' outside its shape {cut.shape}: it was edited.")
        if known.get(name) != cut.shape:
            found = known.get(name, "no such tensor")
            raise other(f"it cuts '{name}' of shape {cut.shape}, the network given has {found}.")
    for tie in plan.ties:
        if len({known[n] for n in tie if n in known}) > 1:
            raise other(f"it ties '{tie[0]}' to a tensor of another shape.")
    largest = max((n for cut in plan.tensors.values() for n in cut.shape), default=0)
    for edit in plan.edits:
        now = dict(integers(modules[edit.module])).get(edit.attribute) if edit.module in modules else None
        if now != edit.old:
            where = f"{edit.module}.{edit.attribute}"
            raise FileError(f"{path}: it expects {where} = {edit.old}, the network given has {now}.")
        if not 0 < edit.new <= max(edit.old, largest):
            raise FileError(f"{path}: no cut sets {edit.module}.{edit.attribute} from {edit.old} to {edit.new}.")


def _check_added(
    entry: Added, plan: Plan, modules: Mapping[str, nn.Module], tensors: Mapping[str, Tensor], other: Refuse
) -> None:
    """A bias has a place for it and as many elements as the layer has rows; a selection reads a norm's channels."""
    path, _, leaf = entry.name.rpartition(".")
    module = modules.get(path)
    if module is None or leaf != entry.kind or leaf in module._buffers:
        raise other(f"'{entry.name}', which it adds, has no place here.")
    beside = f"{path}.{'weight' if entry.kind == 'bias' else 'running_mean'}".lstrip(".")
    owner = tensors.get(beside)
    if owner is None or (entry.kind == "bias" and module._parameters.get("bias", owner) is not None):
        raise other(f"'{entry.name}', which it adds, has no place here.")
    rows, left = _rows(module, tuple(owner.shape)), _rows(module, _left(plan, beside, tuple(owner.shape)))
    if entry.kind == "bias" and _left(plan, entry.name, entry.shape) != (left,) or entry.shape[0] > rows:
        raise other(f"'{entry.name}' of shape {entry.shape}, which it adds, does not fit '{beside}'.")


def _rows(module: nn.Module, shape: tuple[int, ...]) -> int:
    """How many channels the layer of a weight gives."""
    if getattr(module, "transposed", False) is True and len(shape) > 1:
        return shape[1] * int(getattr(module, "groups", 1))
    return shape[0] if shape else 0


def _left(plan: Plan, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return plan.tensors[name].left if name in plan.tensors else shape


def add_(model: nn.Module, plan: Plan) -> None:
    """Tensors that the original does not have: biases and channel selections."""
    for added in plan.added:
        path, _, leaf = added.name.rpartition(".")
        module = model.get_submodule(path)
        if added.kind == "select":
            attach_(module, added.shape[0])
        else:
            setattr(module, leaf, nn.Parameter(torch.zeros(added.shape, dtype=getattr(torch, added.dtype))))
