"""Which operators a rewritten network may call, and what their schemas say about memory."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from prunus.core import FileError
from prunus.core.allowed import find, listed, overload

SPLITS = ("split", "split_with_sizes", "chunk", "unbind", "tensor_split", "hsplit", "vsplit", "dsplit")


@cache
def resolve(name: str) -> Any:
    """The overload of a name like ``"aten.view.default"``, if it is one that a file may call (`allowed.py`).

    Raises: `FileError` for any other name.

    >>> resolve("aten.relu.default")
    <OpOverload(op='aten.relu', overload='default')>
    >>> resolve("aten.from_file.default")
    Traceback (most recent call last):
    prunus.core.errors.FileError: the operator 'aten.from_file.default' is none that a rewritten network may call...
    """
    func = find(name) if len(name) < 100 else None
    if func is None or not listed(func):
        raise FileError(
            f"the operator '{name[:100]}' is none that a rewritten network may call (those that are known to stay "
            "inside their tensors' memory: prunus.core.allowed)."
        )
    return func


def name_of(func: Any) -> str:
    """The name that `resolve` takes.

    >>> name_of(torch.ops.aten.add_.Tensor)
    'aten.add_.Tensor'
    """
    return f"{func._schema.name.replace('::', '.')}.{func._overloadname}"


def changed(func: Any) -> list[int]:
    """The positions of the arguments that an operator writes to.

    >>> changed(torch.ops.aten.add_.Tensor), changed(torch.ops.aten.add.Tensor)
    ([0], [])
    """
    arguments = func._schema.arguments
    return [i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]


def viewed(func: Any) -> int | None:
    """The position of the argument whose memory the outputs share, None when they have their own.

    >>> viewed(torch.ops.aten.permute.default), viewed(torch.ops.aten.add.Tensor)
    (0, None)
    """
    base = func._schema.name.removeprefix("aten::")
    if base in ("_unsafe_view", "unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk"):
        return 0  # they share memory although their schemas, for autograd's sake, do not say so
    shared = any(r.alias_info is not None for r in func._schema.returns)
    arguments = func._schema.arguments
    return next((i for i, a in enumerate(arguments) if a.alias_info is not None), None) if shared else None


def several_views(func: Any) -> bool:
    """Whether it gives several views at once, which autograd does not let be written to."""
    return func._schema.name.removeprefix("aten::") in SPLITS


def is_random(func: Any) -> bool:
    """Whether it draws random numbers."""
    return torch.Tag.nondeterministic_seeded in func.tags


def functional(func: Any) -> Any:
    """The variant of an in-place operator that gives a new tensor; None when there is none.

    >>> functional(torch.ops.aten.add_.Tensor), functional(torch.ops.aten.transpose_.default)
    (<OpOverload(op='aten.add', overload='Tensor')>, <OpOverload(op='aten.transpose', overload='int')>)
    """
    space, base = func._schema.name.split("::")
    if not base.endswith("_") or base.endswith("__"):
        return None
    base = base.removesuffix("_")
    same = overload(space, base, func._overloadname)
    if same is not None:
        return same
    packet, names = getattr(getattr(torch.ops, space), base, None), [a.name for a in func._schema.arguments]
    others = [getattr(packet, o) for o in packet.overloads()] if packet is not None else []
    return next((o for o in others if [a.name for a in o._schema.arguments] == names), None)
