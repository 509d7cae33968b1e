"""A rewritten network as text and tensors, and back: what a file keeps of it.  No pickle, no name is imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from prunus.core import FileError, InputError
from prunus.surgery.graph import program_data, program_from
from prunus.surgery.rewritten import RewrittenModule


def written(module: RewrittenModule) -> tuple[str, dict[str, Tensor]]:
    """The operators and the kinds of all tensors as JSON text, and every tensor once, contiguous, on the CPU.

    Raises: `InputError` when an output has keys that JSON does not know.
    """
    kinds: dict[str, dict[str, Any]] = {}
    first: dict[int, str] = {}
    tensors = {}
    for path, owner in module.named_modules():
        prefix = f"{path}." if path else ""
        for leaf, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is None:
                continue
            name = prefix + leaf
            kinds[name] = {
                "same": first.setdefault(id(tensor), name),
                "parameter": isinstance(tensor, nn.Parameter),
                "gradient": tensor.requires_grad,
                "transient": leaf in owner._non_persistent_buffers_set,
                "order": _order(tensor),
            }
            if first[id(tensor)] == name:
                tensors[name] = tensor.detach().contiguous().cpu().clone()
    try:
        text = json.dumps({"program": program_data(module.program), "tensors": kinds}, sort_keys=False)
    except TypeError as error:
        raise InputError(f"the network cannot be written to a file: {error}.") from None
    return text, tensors


def _order(tensor: Tensor) -> list[int]:
    """The dimensions from the outermost in memory to the innermost."""
    strides = tensor.stride()
    return sorted(range(tensor.dim()), key=lambda d: (-strides[d], d))


def read(text: str, tensors: Mapping[str, Tensor]) -> RewrittenModule:
    """The network again, in evaluation mode; outputs that were objects of a class are plain dictionaries.

    Raises: `FileError` when the text is not what `written` gives, or calls an operator that is not allowed.
    """
    try:
        data = json.loads(text)
        program, kinds = program_from(data["program"]), data["tensors"]
        made: dict[str, Tensor] = {}
        for name, kind in kinds.items():
            if kind["same"] != name:
                made[name] = made[kind["same"]]
                continue
            tensor = _laid_out(tensors[name], kind["order"])
            made[name] = nn.Parameter(tensor, requires_grad=kind["gradient"]) if kind["parameter"] else tensor
        return RewrittenModule(program, made, frozenset(n for n, kind in kinds.items() if kind["transient"]))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError, RecursionError) as error:
        if isinstance(error, FileError):
            raise
        why = f"{type(error).__name__}: {error}"
        raise FileError(f"this is not a rewritten network that prunus wrote ({why}).") from None


def _laid_out(tensor: Tensor, order: list[int]) -> Tensor:
    """The same values with the dimensions in this order in memory."""
    back = sorted(range(len(order)), key=lambda d: order[d])
    return tensor.permute(order).contiguous().permute(back)
