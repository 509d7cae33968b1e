"""Which operators a rewritten network may call, and what their schemas say about memory."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import torch

from prunus.core import FileError

TORCHVISION = ("deform_conv2d", "nms", "ps_roi_align", "ps_roi_pool", "roi_align", "roi_pool")
# Files, foreign memory, global state, and constructors that trust their arguments without a check.
_REFUSED = re.compile(
    r"from_file|save|load|_?print|warn|set_?|set_data|.*storage.*|.*stream.*|.*_?seed.*|.*quantized.*|_?nested_.*"
    r"|_?sparse_.*|.*_unsafe|_make_dual.*|_fw_primal.*|.*_backward.*|_foreach_.*|_cufft_.*|_test_.*|.*_out|pin_memory"
)
_TYPES = re.compile(
    r"(Optional\[)?(List\[(Optional\[)?)?(Tensor|int|float|bool|number|complex|str|Device|Generator|Layout|ScalarType"
    r"|MemoryFormat|SymInt)(\])*"
)
SPLITS = ("split", "split_with_sizes", "chunk", "unbind", "tensor_split", "hsplit", "vsplit", "dsplit")


@cache
def resolve(name: str) -> Any:
    """The overload of a name like ``"aten.view.default"``.

    Only ATen operators that compute tensors from tensors and numbers are given, and torchvision's by name.

    Raises: `FileError` for any other name.

    >>> resolve("aten.relu.default")
    <OpOverload(op='aten.relu', overload='default')>
    >>> resolve("aten.from_file.default")
    Traceback (most recent call last):
    prunus.core.errors.FileError: the operator 'aten.from_file.default' is none that a rewritten network may call...
    """
    parts = name.split(".")
    if len(parts) == 3 and all(re.fullmatch(r"[A-Za-z0-9_]+", part) for part in parts):
        space, base, overload = parts
        if (space == "aten" and not _REFUSED.fullmatch(base)) or (space == "torchvision" and base in TORCHVISION):
            found = _overload(space, base, overload)
            if found is not None and _plain(found):
                return found
    raise FileError(
        f"the operator '{name}' is none that a rewritten network may call (ATen's operators on tensors and numbers, "
        "as prunus records them)."
    )


def _overload(space: str, base: str, overload: str) -> Any:
    try:
        found = getattr(getattr(getattr(torch.ops, space), base), overload)
    except (AttributeError, RuntimeError):
        return None
    return found if isinstance(found, torch._ops.OpOverload) else None


def _plain(func: Any) -> bool:
    """Whether it takes tensors, numbers and names alone, and gives a tensor."""
    schema = func._schema
    if not all(_TYPES.fullmatch(str(a.type)) for a in schema.arguments):
        return False
    return any("Tensor" in str(r.type) for r in schema.returns)


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

    >>> functional(torch.ops.aten.add_.Tensor)
    <OpOverload(op='aten.add', overload='Tensor')>
    """
    space, base = func._schema.name.split("::")
    if not base.endswith("_") or base.endswith("__"):
        return None
    return _overload(space, base.removesuffix("_"), func._overloadname)
