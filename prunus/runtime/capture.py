"""A torch network as a `Graph`, by way of its exported program."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunus.core.errors import TraceError
from prunus.core.inputs import Inputs
from prunus.core.running import undisturbed
from prunus.runtime.graph import INFINITY, Graph, Node, fuse

Reader = Callable[..., "Node | int | None"]  # None: leave it to torch; an int: the same as that node
READERS: dict[str, Reader] = {}
SAME = {"dropout", "contiguous", "detach", "clone", "alias", "lift_fresh_copy", "feature_dropout"}


def reads(*names: str) -> Callable[[Reader], Reader]:
    """Registers how ATen operators of these names become nodes: ``(call, *arguments) -> Node``."""

    def register(reader: Reader) -> Reader:
        READERS.update(dict.fromkeys(names, reader))
        return reader

    return register


class Call:
    """An operator that is read: the shapes and constants it sees."""

    def __init__(self, nodes: dict[int, Node], constants: dict[Any, Tensor], shape: tuple[int, ...], name: str) -> None:
        self.nodes, self.constants, self.shape, self.name = nodes, constants, shape, name

    def node(self, kind: str, inputs: Sequence[int], numbers: dict[str, Any] | None = None, **tensors: Tensor) -> Node:
        """A node that gives what the operator gives."""
        return Node(kind, list(inputs), self.shape, numbers or {}, tensors, self.name)

    def shape_of(self, number: int) -> tuple[int, ...]:
        """The shape of an input."""
        return self.nodes[number].shape


def pair(value: Any) -> list[int]:
    """Numbers for (height, width)."""
    return [int(v) for v in value] * (2 // len(value)) if isinstance(value, (list, tuple)) else [int(value)] * 2


@reads("conv2d", "convolution")
def _conv(
    call: Call, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, *rest
):
    if isinstance(weight, int) or isinstance(bias, int) or len(call.shape) != 4:
        return None
    groups = rest[-1] if rest else 1
    if len(rest) > 1 and rest[0]:
        return None  # transposed
    kernel, dilation, stride = list(weight.shape[2:]), pair(dilation), pair(stride)
    if isinstance(padding, str):
        total = [(k - 1) * d if padding == "same" else 0 for k, d in zip(kernel, dilation)]
        if any(t % 2 for t in total):
            return None
        padding = [t // 2 for t in total]
    if stride[0] != stride[1]:
        return None
    numbers = {"stride": stride[0], "padding": pair(padding), "dilation": dilation, "groups": groups}
    return call.node(
        "conv", [x], numbers, weight=weight, bias=bias if bias is not None else weight.new_zeros(len(weight))
    )


@reads("batch_norm", "_native_batch_norm_legit_no_training")
def _batch_norm(call: Call, x: Any, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any):
    training, eps = (rest[0], rest[2]) if len(rest) > 2 else (False, rest[-1])
    if training or mean is None or len(call.shape) != 4:
        return None
    scale = (var.double() + eps).rsqrt() * (1 if weight is None else weight.double())
    return call.node("affine", [x], scale=scale, shift=(0 if bias is None else bias.double()) - mean.double() * scale)


@reads("linear")
def _linear(call: Call, x: Any, weight: Any, bias: Any = None):
    if isinstance(weight, int) or len(call.shape) != 2:
        return None
    return call.node("linear", [x], weight=weight, bias=bias if bias is not None else weight.new_zeros(len(weight)))


@reads("addmm")
def _addmm(call: Call, bias: Any, x: Any, weight: Any):
    return None if isinstance(weight, int) or isinstance(bias, int) else _linear(call, x, weight.t(), bias)


@reads("relu")
def _relu(call: Call, x: Any):
    return call.node("bounds", [x], {"low": 0.0, "high": INFINITY})


@reads("relu6")
def _relu6(call: Call, x: Any):
    return call.node("bounds", [x], {"low": 0.0, "high": 6.0})


@reads("hardtanh", "clamp")
def _clamp(call: Call, x: Any, low: Any = -1.0, high: Any = 1.0):
    bounds = {"low": -INFINITY if low is None else float(low), "high": INFINITY if high is None else float(high)}
    return call.node("bounds", [x], bounds)


@reads("add")
def _add(call: Call, a: Any, b: Any, alpha: Any = 1):
    plain = isinstance(a, int) and isinstance(b, int) and alpha == 1 and len(call.shape) == 4
    return call.node("add", [a, b]) if plain and call.shape_of(a) == call.shape_of(b) else None


@reads("max_pool2d", "avg_pool2d")
def _pool(call: Call, x: Any, kernel: Any, stride: Any = (), padding: Any = 0, *rest: Any):
    kind = "max" if "max" in call.name else "mean"
    kernel, padding = pair(kernel), pair(padding)
    stride = pair(stride) if stride else kernel
    dilation, ceil = (
        ([1, 1], rest[0] if rest else False) if kind == "mean" else (pair(rest[0]) if rest else [1, 1], False)
    )
    if kind == "max":
        ceil = rest[1] if len(rest) > 1 else False
    counted = rest[1] if len(rest) > 1 else True
    odd = kind == "mean" and ((not counted and any(padding)) or (len(rest) > 2 and rest[2] is not None))
    if stride[0] != stride[1] or ceil or dilation != [1, 1] or odd:
        return None
    return call.node("pool", [x], {"of": kind, "kernel": kernel, "stride": stride[0], "padding": padding})


@reads("adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def _adaptive(call: Call, x: Any, size: Any):
    height, width = call.shape_of(x)[2:]
    out = call.shape[2:]
    if out == (1, 1):
        return call.node("mean", [x])
    if height % out[0] or width % out[1] or height // out[0] != width // out[1]:
        return None
    k = height // out[0]
    if k == 1:
        return x
    return call.node("pool", [x], {"of": "mean", "kernel": [k, k], "stride": k, "padding": [0, 0]})


@reads("mean")
def _mean(call: Call, x: Any, axes: Any = None, keep: Any = False):
    plain = len(call.shape_of(x)) == 4 and axes is not None and sorted(a % 4 for a in axes) == [2, 3]
    return call.node("mean", [x]) if plain else None


@reads("flatten", "view", "reshape", "_unsafe_view", "squeeze")
def _flatten(call: Call, x: Any, *_: Any):
    before = call.shape_of(x)
    if before == call.shape:
        return x
    return call.node("flatten", [x]) if len(call.shape) == 2 and call.shape[0] == before[0] else None


@reads("cat")
def _cat(call: Call, parts: Any, axis: Any = 0):
    plain = all(isinstance(p, int) for p in parts) and len(call.shape) == 4 and axis % 4 == 1
    return call.node("cat", parts) if plain else None


@reads("slice")
def _slice(call: Call, x: Any, axis: Any = 0, start: Any = None, end: Any = None, step: Any = 1):
    shape = call.shape_of(x)
    if shape == call.shape:
        return x
    if len(shape) != 4 or axis == 0:
        return None
    kept = [list(range(n)) for n in shape[1:]]
    kept[axis - 1] = kept[axis - 1][slice(start, end, step)]
    return call.node("pick", [x], {"kept": kept})


@reads("pad", "constant_pad_nd")
def _pad(call: Call, x: Any, amounts: Any, mode: Any = "constant", value: Any = 0.0):
    if mode not in ("constant", 0, 0.0) or value or len(call.shape_of(x)) != 4 or len(amounts) > 6:
        return None
    kept = []
    for axis, n in zip((3, 2, 1), (*reversed(call.shape_of(x)[1:]),)):
        before, after = amounts[2 * (3 - axis) : 2 * (3 - axis) + 2] or (0, 0)
        kept.append([i if 0 <= i < n else -1 for i in range(-before, n + after)])
    return call.node("pick", [x], {"kept": kept[::-1]})


@reads("upsample_nearest2d")
def _nearest(call: Call, x: Any, *_: Any):
    (channels, *before), after = call.shape_of(x)[1:], call.shape[2:]
    if any(b % a for a, b in zip(before, after)):
        return None
    pixels = [[i // (b // a) for i in range(b)] for a, b in zip(before, after)]
    return call.node("pick", [x], {"kept": [list(range(channels)), *pixels]})


def capture(model: nn.Module, inputs: Inputs) -> Graph:
    """The network as data, in evaluation mode; raises `TraceError` when torch cannot export it."""
    with undisturbed(model), warnings.catch_warnings():
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
            plain = isinstance(written, fx.Node) and written.op == "call_function" and not _views(written)
            if not plain or any(_views(user) and order[user] < order[item] for user in written.users):
                return False
            if not _pure(item):
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
    known: dict[fx.Node, Any] = {}  # the number of a node, or a constant tensor
    outputs: list[int] = []
    for number, item in enumerate(program.graph.nodes):
        if item.op == "placeholder":
            if item.name in stored:
                known[item] = held[stored[item.name]].detach()
            else:
                known[item] = number
                value = item.meta["val"]
                plain = isinstance(value, Tensor) and value.dtype == torch.float32 and value.dim() >= 2
                nodes[number] = Node("input", [], tuple(getattr(value, "shape", ())), {"plain": plain}, name=item.name)
        elif item.op == "call_function":
            known[item] = _operator(number, item, known, nodes)
            if _writes(item):
                known[item.args[0]] = known[item]
        elif item.op == "output":
            outputs = [known[i] for i in item.args[0]]
    return Graph(nodes, outputs, len(outputs) > 1)


def _operator(number: int, item: fx.Node, known: dict[fx.Node, Any], nodes: dict[int, Node]) -> Any:
    value = item.meta.get("val")
    shape = tuple(value.shape) if isinstance(value, Tensor) else ()
    target = (
        str(item.target) if isinstance(item.target, torch._ops.OpOverload) else getattr(item.target, "__name__", "?")
    )
    if _writes(item):
        target = _pure(item) or target
    name = target.split(".")[1] if target.startswith("aten.") else target
    args = fx.map_arg(item.args, lambda n: known[n])
    kwargs = fx.map_arg(item.kwargs, lambda n: known[n])
    call = Call(nodes, {}, shape, name)
    if name in SAME and isinstance(args[0], int):
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
