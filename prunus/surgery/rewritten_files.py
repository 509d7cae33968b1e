"""A rewritten network as text and tensors, and back: what a file keeps of it.  No pickle, no name is imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from prunus.core import FileError, InputError
from prunus.core.fields import entries, items, parsed, record, shortly, shown, whole
from prunus.surgery.graph import program_data, program_from
from prunus.surgery.rehearse import rehearse
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

    Raises: `FileError` when the text is not what `written` gives, calls an operator that is not allowed, or one that
    cannot run on these tensors (`rehearse`).
    """
    try:
        data = record(parsed(text), ("program", "tensors"))
        program, made, transient = program_from(data["program"]), dict[str, Tensor](), set[str]()
        for name, kind in entries(data["tensors"]).items():
            record(kind, ("same", "parameter", "gradient", "transient", "order"))
            transient |= {name} if kind["transient"] is True else set()
            if kind["same"] != name:
                made[name] = made[kind["same"]]
                continue
            tensor = _laid_out(tensors[name], kind["order"])
            gradient = kind["gradient"] is True and (tensor.is_floating_point() or tensor.is_complex())
            made[name] = nn.Parameter(tensor, requires_grad=gradient) if kind["parameter"] is True else tensor
        if extra := sorted(set(tensors) - set(made)):
            raise ValueError(f"nothing is said of the tensor {shown(extra[0])}")
        module = RewrittenModule(program, made, frozenset(transient))
        for runner in module._runners.values():
            rehearse(runner.graph, runner, made, module._anchor())
        return module
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"this is not a rewritten network that prunus wrote ({shortly(error)}).") from None


def _laid_out(tensor: Tensor, order: list[int]) -> Tensor:
    """The same values with the dimensions in this order in memory."""
    if sorted(map(whole, items(order))) != list(range(tensor.dim())):
        raise ValueError(f"a tensor of {tensor.dim()} dimensions cannot lie so")
    back = sorted(range(len(order)), key=lambda d: order[d])
    return tensor.permute(order).contiguous().permute(back)
