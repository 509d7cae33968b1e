"""A torch network as a `Graph`, by way of its exported program."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import OutputKind

from prunus.core.allowed import find
from prunus.core.callbacks import OUT_OF_MEMORY
from prunus.core.errors import TraceError
from prunus.core.inputs import Inputs
from prunus.core.process import EXPORTING, without_warnings
from prunus.core.running import undisturbed
from prunus.runtime import arithmetic, gating, resampling  # noqa: F401  register how their operators are read
from prunus.runtime.bases import Factors, attach_factors, note_factors
from prunus.runtime.fallback import may_call
from prunus.runtime.graph import Graph, Node, Ref, fuse
from prunus.runtime.layout import FLOAT
from prunus.runtime.limits import BYTES
from prunus.runtime.operators import DROPOUTS, FREE, READERS, SAME, Call
from prunus.runtime.structure import Structure, described


def capture(model: nn.Module, inputs: Inputs, images: int | None = None, shared: Sequence[int] = ()) -> Graph:
    """The network as data, in evaluation mode; raises `TraceError` when torch cannot export it.

    `images`: how many samples the engine runs at a time, a power of two; values of as many lie in its memory.
    `shared`: the inputs, by position, that all samples have in common.
    """
    images = inputs.batch if images is None else images
    with EXPORTING, undisturbed(model), gating.as_operators(), without_warnings():
        try:
            program = torch.export.export(model, tuple(inputs.args), dict(inputs.kwargs))
            if not _renamable(program.graph):
                program = program.run_decompositions({})  # takes as long again, but leaves nothing that writes in place
        except OUT_OF_MEMORY:
            raise
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise TraceError(
                f"torch.export cannot follow the forward of {type(model).__name__}: {reason} The engine runs exported "
                "programs; make forward exportable, or cut the network in parts."
            ) from error
    written = [s.target for s in program.graph_signature.output_specs if s.kind == OutputKind.BUFFER_MUTATION]
    if written:
        raise TraceError(
            f"the forward of {type(model).__name__} changes its own buffers ({', '.join(map(str, written[:5]))}); a "
            "compiled network keeps nothing from call to call. Give them to forward, and let it return them."
        )
    graph = fuse(_read(program, images, shared))
    table = torch.export.default_decompositions()
    composed = {item.target for item in program.graph.nodes if str(item.target) in _unlisted(graph)} & table.keys()
    if composed:
        with EXPORTING, without_warnings():
            program = program.run_decompositions({function: table[function] for function in composed})
        graph = fuse(_read(program, images, shared))
    graph.counted = any(map(_counted, program.graph.nodes))
    return graph


def _unlisted(graph: Graph) -> set[str]:
    """Operators that neither a kernel nor torch is to run, of a graph."""
    names = {node.numbers["operator"] for node in graph.nodes.values() if node.kind == "torch"} - {"getitem"}
    return {name for name in names if not may_call(find(name))}


def _counted(item: fx.Node) -> bool:
    """Whether an operator computes with a number of Python's, or with nothing else: it may stand for the batch size."""
    schema = _schema(item)
    if schema is None:
        return False
    kinds = {a.name: str(a.type).removeprefix("Optional[").rstrip("]") for a in schema.arguments}
    given = [*zip(kinds, item.args), *item.kwargs.items()]
    numbers = [name for name, value in given if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return not item.all_input_nodes or any(kinds.get(name) in ("number", "Tensor") for name in numbers)


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


def _read(program: Any, images: int, shared: Sequence[int]) -> Graph:
    signature = program.graph_signature
    stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    stored |= getattr(signature, "inputs_to_lifted_tensor_constants", {})
    held = {**dict(program.state_dict), **dict(program.constants)}
    nodes: dict[int, Node] = {}
    known: dict[Any, Any] = {}  # the number of a node, or a constant
    factors: Factors = {}
    for number, item in ((Ref(i), item) for i, item in enumerate(program.graph.nodes)):
        if item.op == "placeholder":
            value = item.meta.get("val")
            if item.name in stored:
                known[item] = held[stored[item.name]].detach()
            elif isinstance(value, Tensor):
                known[item] = number
                common = sum(node.kind == "input" for node in nodes.values()) in shared
                plain = _plain(value, images) and not common
                numbers = {"plain": plain, "dtype": str(value.dtype), "shared": common}
                nodes[number] = Node("input", [], tuple(value.shape), numbers, name=item.name)
            else:
                known[item] = value
        elif item.op == "call_function" and _schema(item) is not None and not item.target._schema.returns:
            continue  # it asserts what was true of the example
        elif item.op == "call_function" and (_schema(item) is not None or item.target is operator.getitem):
            if _constant(item, known):
                known[item] = item.target(*fx.map_arg(item.args, known.get), **fx.map_arg(item.kwargs, known.get))
                if isinstance(known[item], Tensor) and item.all_input_nodes:
                    note_factors(item, known, factors)
                continue
            known[item] = _operator(number, item, known, nodes, images)
            if number in nodes and nodes[number].kind == "conv" and item.args[1] in factors:
                attach_factors(nodes[number], *factors[item.args[1]])
            if _writes(item):
                known[item.args[0]] = known[item]
        elif item.op != "output":
            raise TraceError(
                f"the engine has no way to run '{item.target}', which the exported forward calls: it runs operators "
                "of ATen one after the other. Cut the network in parts, or write this part with plain operators."
            )
    return _given(program, nodes, known)


def _given(program: Any, nodes: dict[int, Node], known: dict[Any, Any]) -> Graph:
    """The graph with its outputs, put together as forward does it."""
    (result,) = [item.args[0] for item in program.graph.nodes if item.op == "output"]
    wanted = [s.kind == OutputKind.USER_OUTPUT for s in program.graph_signature.output_specs]
    outputs: list[int] = []
    leaves: list[Structure] = []
    for item in (item for item, is_wanted in zip(result, wanted, strict=True) if is_wanted):
        value = known[item] if isinstance(item, fx.Node) else item
        if isinstance(value, Tensor):
            number = Ref(FREE + len(nodes))
            nodes[number] = Node("constant", [], tuple(value.shape), {"plain": False}, {"value": value}, "constant")
            value = number
        if isinstance(value, Ref):
            leaves.append({"leaf": len(outputs)})
            outputs.append(value)
        elif value is None or isinstance(value, (bool, int, float, str)):
            leaves.append({"value": value})
        else:
            raise TraceError(f"forward gives a {type(value).__name__}, which the engine cannot. Let it give tensors.")
    if not outputs:
        raise TraceError("forward gives no tensor, so there is nothing to run. Let it return what it computes.")
    return Graph(nodes, outputs, described(program.call_spec.out_spec, leaves))


def _plain(value: Any, images: int) -> bool:
    """Whether a value is samples of float32, as lie in the engine's memory."""
    if not isinstance(value, Tensor) or value.dtype != torch.float32 or value.layout != torch.strided:
        return False
    shape = tuple(value.shape)
    return 2 <= len(shape) <= 8 and shape[0] == images and min(shape) > 0 and prod(shape) * FLOAT < BYTES


def _constant(item: fx.Node, known: dict[Any, Any]) -> bool:
    """Whether an operator reads nothing but constants: a weight that is computed, zeros, a range; no random numbers."""
    drawn = _schema(item) is not None and torch.Tag.nondeterministic_seeded in cast(Any, item.target).tags
    return not drawn and not _writes(item) and not any(isinstance(known[n], Ref) for n in item.all_input_nodes)


def _part(item: fx.Node, known: dict[Any, Any], nodes: dict[int, Node]) -> Node | None:
    """One of the pieces that channels were split in, or None for anything else."""
    whole: Any = item.args[0]
    which: Any = item.args[1]
    made, value, args = nodes[known[whole]], item.meta.get("val"), whole.args
    split = made.numbers["operator"].split(".")[1:2]
    if split not in (["chunk"], ["split"], ["split_with_sizes"]) or not isinstance(value, Tensor) or value.dim() != 4:
        return None
    axis = args[2] if len(args) > 2 else whole.kwargs.get("dim", 0)
    if axis % 4 != 1 or value.dtype != torch.float32 or not nodes[made.inputs[0]].in_memory:
        return None
    start = sum(part.shape[1] for part in whole.meta["val"][:which])
    kept = [list(range(start, start + value.shape[1])), *(list(range(n)) for n in value.shape[2:])]
    return Node("pick", [made.inputs[0]], tuple(value.shape), {"kept": kept}, {}, "split")


def _in_memory(item: fx.Node, known: dict[Any, Any], nodes: dict[int, Node]) -> bool:
    """Whether a kernel can read all that an operator reads."""
    return all(nodes[known[n]].in_memory for n in item.all_input_nodes if isinstance(known[n], Ref))


def _operator(number: Ref, item: fx.Node, known: dict[Any, Any], nodes: dict[int, Node], images: int) -> Any:
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
    if not all(isinstance(n, int) for n in shape):
        raise TraceError(
            f"the sizes of what '{name}' gives depend on values, which kernels cannot. Cut the network there."
        )
    args = fx.map_arg(item.args, lambda n: known[n])
    kwargs = fx.map_arg(item.kwargs, lambda n: known[n])
    call = Call(nodes, shape, name, item.target)
    same = name in SAME or (name in DROPOUTS and not args[2])
    if same and isinstance(args[0], (Ref, Tensor)):
        return args[0]
    plain = _plain(value, images)
    if name in READERS and plain and _in_memory(item, known, nodes):
        made = _by_kernel(call, args, kwargs)
        if isinstance(made, (int, Tensor)):
            return made
        if made is not None:
            nodes[number] = made
            return number
    inputs: list[int] = []
    tensors: dict[str, Tensor] = {}

    def encode(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return encode(known[argument])
        if isinstance(argument, Ref):
            inputs.append(argument)
            return {"node": len(inputs) - 1}
        if isinstance(argument, Tensor):
            tensors[f"t{len(tensors)}"] = argument
            return {"tensor": f"t{len(tensors) - 1}"}
        if isinstance(argument, (list, tuple)):
            return [encode(a) for a in argument]
        if argument is None or isinstance(argument, (int, float, bool, str)):
            return argument
        return {"torch": str(argument)}

    numbers = {
        "operator": target if target.startswith("aten.") else name,
        "args": encode(item.args),
        "kwargs": {k: encode(v) for k, v in item.kwargs.items()},
        "plain": plain,
    }
    nodes[number] = Node("torch", inputs, shape, numbers, tensors, name)
    return number


def _by_kernel(call: Call, args: Any, kwargs: Any) -> Any:
    """How an operator is read; None, which leaves it to torch, also where a reader does not know its arguments."""
    before = set(call.nodes)
    try:
        made = READERS[call.name](call, *args, **kwargs)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        made = None
    if made is None:
        for number in set(call.nodes) - before:
            del call.nodes[number]
    return made
