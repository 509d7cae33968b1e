"""Operators that the engine has no kernel for, run by torch: those of `core.allowed`, with checked arguments."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from prunus.core.allowed import find, listed
from prunus.core.errors import InputError
from prunus.core.guards import guard_of
from prunus.runtime.graph import Node

RECURRENT = {"lstm.input": 4, "gru.input": 3, "rnn_tanh.input": 1, "rnn_relu.input": 1}  # rows for each hidden value
COMPOSED = {f"aten.{name}" for name in ("einsum.default", "repeat_interleave.self_int")}  # of others that are listed
TYPES = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128", "bool")
WHOLE = ("uint8", "int8", "int16", "int32", "int64")
FORMATS = ("strided", "contiguous_format", "preserve_format", "channels_last")
CONSTANTS = {f"torch.{name}": getattr(torch, name) for name in (*TYPES, *WHOLE, *FORMATS)}


def may_call(function: Any) -> bool:
    """Whether an operator is one that the engine gives to torch: it stays inside its tensors' memory, and writes none.

    >>> may_call(torch.ops.aten.erf.default), may_call(torch.ops.aten.as_strided.default)
    (True, False)
    """
    if function is operator.getitem:
        return True
    if not isinstance(function, torch._ops.OpOverload) or function._schema.is_mutable:
        return False
    name = str(function)
    return listed(function) or name in COMPOSED or name.removeprefix("aten.") in RECURRENT


def resolve(node: Node) -> Callable[[Sequence[Any]], Any]:
    """A function from the values of a node's inputs to what it gives.

    Raises `InputError` for an operator that is not listed: a file may ask for nothing but computing.
    """
    return _run(node, torch.device("cpu"))


def derived(node: Node, given: Sequence[Any], most: int) -> Any:
    """What an operator gives for what it is given, without values: tensors of the meta device, of so many bytes."""
    made = _run(node, torch.device("meta"))(given)
    size = sum(t.numel() * t.element_size() for t in tree_leaves(made) if isinstance(t, Tensor))
    if size > most:
        raise InputError(f"'{node.name}' gives {size} bytes; at most {most} may be.")
    return made


def owned(made: Any, read: Sequence[Any]) -> Any:
    """What an operator gave, without a view of what it read: that memory is used again."""
    theirs = {t.untyped_storage().data_ptr() for t in read if isinstance(t, Tensor)}
    return tree_map_only(Tensor, lambda t: t.clone() if t.untyped_storage().data_ptr() in theirs else t, made)


def _run(node: Node, device: torch.device) -> Callable[[Sequence[Any]], Any]:
    # what lies in the engine's memory is laid out anew
    name = str(node.numbers["operator"]).replace("aten.view.default", "aten.reshape.default")
    function: Any = operator.getitem if name == "getitem" else find(name) if len(name) < 100 else None
    if not may_call(function):
        raise InputError(
            f"'{name[:100]}' ({node.name}) is none of the operators that the engine gives to torch: those that are "
            "known to stay inside their tensors' memory (prunus.core.allowed). Cut the network in parts there."
        )
    arguments, guard = _arguments(node, device), _guard(function)

    def run(values: Sequence[Any]) -> Any:
        args, kwargs = arguments(values)
        if guard is not None:
            guard(args, kwargs)
        return function(*args, **kwargs)

    return run


def _arguments(node: Node, device: torch.device) -> Callable[[Sequence[Any]], tuple[list[Any], dict[str, Any]]]:
    """A function from the values of a node's inputs to an operator's arguments, on a device."""
    tensors = {name: tensor.to(device) for name, tensor in node.tensors.items()}

    def decode(argument: Any, values: Sequence[Any]) -> Any:
        if isinstance(argument, dict):
            ((kind, held),) = argument.items()
            if kind == "node":
                return values[held]
            return tensors[held] if kind == "tensor" else _constant(held, node, device)
        return [decode(a, values) for a in argument] if isinstance(argument, list) else argument

    def arguments(values: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        args, kwargs = node.numbers["args"], node.numbers["kwargs"]
        return decode(args, values), {k: decode(v, values) for k, v in kwargs.items()}

    return arguments


def _constant(text: Any, node: Node, device: torch.device) -> Any:
    """A data type, layout or device, e.g. ``torch.float32``, ``cpu``."""
    if text == "cpu":
        return device
    if text not in CONSTANTS:
        raise InputError(f"'{str(text)[:40]}' is no argument that {node.numbers['operator']} ({node.name}) can have.")
    return CONSTANTS[text]


def _guard(function: Any) -> Callable[[Any, Any], None] | None:
    """What looks at arguments before every call, where a kernel trusts them."""
    if function is operator.getitem:
        return _part
    rows = RECURRENT.get(str(function).removeprefix("aten."))
    return guard_of(function) if rows is None else lambda args, kwargs: _recurrent(rows, *args, **kwargs)


def _part(args: Any, kwargs: Any) -> None:
    if kwargs or len(args) != 2 or type(args[1]) is not int:
        raise InputError("a part is taken by a number.")


def _recurrent(
    rows: int,
    x: Tensor,
    states: Any,
    weights: Sequence[Tensor],
    biases: bool,
    layers: int,
    _: float,
    training: bool,
    both_ways: bool,
    batch_first: bool,
) -> None:
    """Every weight and state has the size that the others ask for: kernels read as much of them."""
    first, *rest = states if rows == RECURRENT["lstm.input"] else [states]
    hidden, out, ways = (rest or [first])[0].shape[-1], first.shape[-1], 1 + both_ways
    found = [tuple(t.shape) for t in (first, *rest, *weights)]
    wanted: list[tuple[int, ...]] = [(layers * ways, x.shape[0 if batch_first else 1], n) for n in (out, hidden)]
    wanted = wanted[: 1 + len(rest)]
    for layer in range(min(layers, len(weights))):
        each = [(rows * hidden, out * ways if layer else x.shape[-1]), (rows * hidden, out)]
        wanted += (each + [(rows * hidden,)] * 2 * biases + [(out, hidden)] * (out != hidden)) * ways
    fits = x.dim() == 3 and x.numel() and x.is_floating_point() and not training and len(rest) == (rows == 4)
    if not fits or found != wanted or any(t.dtype != x.dtype for t in (first, *rest, *weights)):
        raise InputError(f"a recurrent layer of inputs {tuple(x.shape)} cannot have states and weights of {found}.")
