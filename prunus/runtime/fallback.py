"""Operators that the engine has no kernel for, run by torch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch

from prunus.core.errors import FileError
from prunus.runtime.graph import Node


def resolve(node: Node) -> Callable[[Sequence[Any]], Any]:
    """A function from the values of a node's inputs to what it gives; only operators of ATen, and ``getitem``.

    Raises `FileError` for anything else: a file may ask for nothing but computing.
    """
    name = node.numbers["operator"].replace("aten.view.default", "aten.reshape.default")  # copies are laid out anew
    if name == "getitem":
        function: Any = operator.getitem
    else:
        space, *path = name.split(".")
        packet = getattr(torch.ops.aten, path[0], None) if space == "aten" and len(path) == 2 else None
        function = getattr(packet, path[1], None) if packet is not None else None
        if not isinstance(function, torch._ops.OpOverload) or not _computes(function):
            raise FileError(
                f"'{name}' ({node.name}) is no operator of ATen that computes tensors from tensors. Compile the "
                "model again."
            )

    def decode(argument: Any, values: Sequence[Any]) -> Any:
        if isinstance(argument, dict):
            if "node" in argument:
                return values[argument["node"]]
            if "tensor" in argument:
                return node.tensors[argument["tensor"]]
            return _constant(argument["torch"], node)
        return [decode(a, values) for a in argument] if isinstance(argument, list) else argument

    def run(values: Sequence[Any]) -> Any:
        args = decode(node.numbers["args"], values)
        return function(*args, **{k: decode(v, values) for k, v in node.numbers["kwargs"].items()})

    return run


def _computes(function: torch._ops.OpOverload) -> bool:
    """Whether an operator reads a tensor and writes none."""
    schema = function._schema
    return not schema.is_mutable and any("Tensor" in str(a.type) for a in schema.arguments)


def _constant(text: str, node: Node) -> Any:
    """A data type, layout or device, e.g. ``torch.float32``, ``cpu``."""
    if text.startswith("torch."):
        value = getattr(torch, text.removeprefix("torch."), None)
        if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
            return value
    if text == "cpu":
        return torch.device("cpu")
    raise FileError(f"'{text}' is no argument that {node.numbers['operator']} ({node.name}) can have.")
