"""A torch network as a `Graph`, by way of its exported program."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunus.core.errors import TraceError
from prunus.core.inputs import Inputs
from prunus.core.running import undisturbed
from prunus.runtime import arithmetic, gating, resampling  # noqa: F401  some register how operators are read
from prunus.runtime.bases import Factors, attach_factors, note_factors
from prunus.runtime.graph import Graph, Node, Ref, fuse
from prunus.runtime.operators import READERS, SAME, Call


def capture(model: nn.Module, inputs: Inputs) -> Graph:
    """The network as data, in evaluation mode; raises `TraceError` when torch cannot export it."""
    with undisturbed(model), gating.as_operators(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(model, tuple(inputs.args), dict(inputs.kwargs))
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise TraceError(
                f"torch.export cannot follow the forward of {type(model).__name__}: {reason} The engine runs exported "
                "programs; make forward exportable, or cut the network in parts."
            ) from error
        if not _renamable(program.graph):
            program = program.run_decompositions({})  # takes as long again, but leaves nothing that writes in place
    return fuse(_read(program))


def _schema(item: fx.Node) -> Any:
    return item.target._schema if isinstance(item.target, torch._ops.OpOverload) else None


def _writes(item: fx.Node) -> bool:
    schema = _schema(item)
    return schema is not None and schema.is_mutable


def _views(item: fx.Node) -> bool:
    schema = _schema(item)
    return schema is not None and any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)


def _renamable(graph: fx.Graph) -> bool:
    """Whether every operator that writes in place can be read as one that does not, its result being read from then on.

    So it is where what it writes to, its first argument, is no input, no view, and nothing viewed it before.
    """
    order = {item: i for i, item in enumerate(graph.nodes)}
    for item in graph.nodes:
        if item.op == "call_function" and _writes(item):
            written = item.args[0] if item.args else None
            if not isinstance(written, fx.Node) or written.op != "call_function" or _views(written) or not _pure(item):
                return False
            if any(_views(user) and order[user] < order[item] for user in written.users):
                return False
    return True


def _pure(item: fx.Node) -> str | None:
    """The name of the operator that gives what this one writes."""
    name, overload = str(item.target).removeprefix("aten.").split(".")
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    known = name.endswith("_") and packet is not None and overload in packet.overloads()
    return f"aten.{name.removesuffix('_')}.{overload}" if known else None


def _read(program: Any) -> Graph:
    signature = program.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    stored |= getattr(signature, "inputs_to_lifted_tensor_constants", {})
    held = {**dict(program.state_dict), **dict(program.constants)}
    nodes: dict[int, Node] = {}
    known: dict[Any, Any] = {}  # the number of a node, or a constant tensor
    factors: Factors = {}
    outputs: list[int] = []
    for number, item in ((Ref(i), item) for i, item in enumerate(program.graph.nodes)):
        if item.op == "placeholder":
            if item.name in stored:
                known[item] = held[stored[item.name]].detach()
            else:
                known[item] = number
                value = item.meta["val"]
                plain = isinstance(value, Tensor) and value.dtype == torch.float32 and value.dim() >= 2
                numbers = {"plain": plain, "dtype": str(getattr(value, "dtype", ""))}
                nodes[number] = Node("input", [], tuple(getattr(value, "shape", ())), numbers, name=item.name)
        elif item.op == "call_function":
            if _constant(item, known):
                known[item] = item.target(*fx.map_arg(item.args, known.get), **fx.map_arg(item.kwargs, known.get))
                note_factors(item, known, factors)
                continue
            known[item] = _operator(number, item, known, nodes)
            if number in nodes and nodes[number].kind == "conv" and item.args[1] in factors:
                attach_factors(nodes[number], *factors[item.args[1]])
            if _writes(item):
                known[item.args[0]] = known[item]
        elif item.op == "output":
            outputs = [known[i] for i in item.args[0]]
    return Graph(nodes, outputs, len(outputs) > 1)


def _constant(item: fx.Node, known: dict[Any, Any]) -> bool:
    """Whether an operator reads nothing but constants: a weight that is computed."""
    read = item.all_input_nodes
    return (
        bool(read)
        and not _writes(item)
        and _schema(item) is not None
        and all(isinstance(known[n], Tensor) for n in read)
    )


def _part(item: fx.Node, known: dict[Any, Any], nodes: dict[int, Node]) -> Node | None:
    """One of the pieces that channels were split in, or None for anything else."""
    whole: Any = item.args[0]
    which: Any = item.args[1]
    made, value, args = nodes[known[whole]], item.meta.get("val"), whole.args
    split = made.numbers["operator"].split(".")[1:2]
    if split not in (["chunk"], ["split"], ["split_with_sizes"]) or not isinstance(value, Tensor) or value.dim() != 4:
        return None
    axis = args[2] if len(args) > 2 else whole.kwargs.get("dim", 0)
    if axis % 4 != 1 or value.dtype != torch.float32:
        return None
    start = sum(part.shape[1] for part in whole.meta["val"][:which])
    kept = [list(range(start, start + value.shape[1])), *(list(range(n)) for n in value.shape[2:])]
    return Node("pick", [made.inputs[0]], tuple(value.shape), {"kept": kept}, {}, "split")


def _operator(number: Ref, item: fx.Node, known: dict[Any, Any], nodes: dict[int, Node]) -> Any:
    value: Any = item.meta.get("val")
    overload = isinstance(item.target, torch._ops.OpOverload)
    target = str(item.target) if overload else getattr(item.target, "__name__", "?")
    if _writes(item):
        target = _pure(item) or target
    name = target.split(".")[1] if target.startswith("aten.") else target
    if name == "_native_batch_norm_legit_no_training":
        value = value[0]  # the others are of training alone
    if name == "getitem" and nodes[known[item.args[0]]].kind != "torch":
        return known[item.args[0]]
    if name == "getitem":
        part = _part(item, known, nodes)
        if part is not None:
            nodes[number] = part
            return number
    shape = tuple(value.shape) if isinstance(value, Tensor) else ()
    args = fx.map_arg(item.args, lambda n: known[n])
    kwargs = fx.map_arg(item.kwargs, lambda n: known[n])
    call = Call(nodes, shape, name, item.target)
    if name in SAME and isinstance(args[0], (Ref, Tensor)):
        return args[0]
    floating = isinstance(value, Tensor) and value.dtype == torch.float32
    if name in READERS and floating:
        made = READERS[name](call, *args, **kwargs)
        if isinstance(made, int):
            return made
        if made is not None:
            nodes[number] = made
            return number
    inputs: list[int] = []
    tensors: dict[str, Tensor] = {}

    def encode(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            given = known[argument]
            if isinstance(given, Tensor):
                tensors[f"t{len(tensors)}"] = given
                return {"tensor": f"t{len(tensors) - 1}"}
            inputs.append(given)
            return {"node": len(inputs) - 1}
        if isinstance(argument, (list, tuple)):
            return [encode(a) for a in argument]
        if argument is None or isinstance(argument, (int, float, bool, str)):
            return argument
        return {"torch": str(argument)}

    numbers = {
        "operator": target if target.startswith("aten.") else name,
        "args": encode(item.args),
        "kwargs": {k: encode(v) for k, v in item.kwargs.items()},
        "plain": floating and len(shape) >= 2,
    }
    nodes[number] = Node("torch", inputs, shape, numbers, tensors, name)
    return number
