"""How ATen operators are read: each becomes a node, or is left to torch.  Layers, functions, and changes of shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd
from typing import Any

from torch import Tensor

from prunus.runtime.graph import INFINITY, Node, Ref
from prunus.runtime.limits import BEYOND

Reader = Callable[..., "Node | int | None"]  # None: leave it to torch; an int: the same as that node
READERS: dict[str, Reader] = {}
FREE = 1 << 20  # numbers from here on are of nodes that operators put before their own
SAME = {"contiguous", "detach", "clone", "alias", "lift_fresh_copy"}
DROPOUTS = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}  # the same, but in training


def reads(*names: str) -> Callable[[Reader], Reader]:
    """Registers how ATen operators of these names become nodes: ``(call, *arguments) -> Node``."""

    def register(reader: Reader) -> Reader:
        READERS.update(dict.fromkeys(names, reader))
        return reader

    return register


class Call:
    """An operator that is read: its name, the shape of what it gives, and the nodes before it."""

    def __init__(self, nodes: dict[int, Node], shape: tuple[int, ...], name: str, target: Any = None) -> None:
        self.nodes, self.shape, self.name, self.target = nodes, shape, name, target

    def node(self, kind: str, inputs: Sequence[int], numbers: dict[str, Any] | None = None, **tensors: Tensor) -> Node:
        """A node that gives what the operator gives."""
        return Node(kind, list(inputs), self.shape, numbers or {}, tensors, self.name)

    def before(self, kind: str, inputs: Sequence[int], shape: Sequence[int], numbers: dict[str, Any]) -> Ref:
        """The number of a node before the one that the operator becomes."""
        number = Ref(FREE + len(self.nodes))
        self.nodes[number] = Node(kind, list(inputs), tuple(shape), numbers, {}, self.name)
        return number

    def shape_of(self, number: int) -> tuple[int, ...]:
        """The shape of an input."""
        return self.nodes[number].shape


def pair(value: Any) -> list[int]:
    """Numbers for (height, width)."""
    return [int(v) for v in value] * (2 // len(value)) if isinstance(value, (list, tuple)) else [int(value)] * 2


@reads("conv2d", "convolution")
def _conv(
    call: Call, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, *rest: Any
) -> Node | int | None:
    if isinstance(weight, Ref) or isinstance(bias, Ref) or len(call.shape) != 4:
        return None
    if len(rest) > 1 and rest[0]:  # of `convolution`: transposed, and how many rows more
        return _transposed(call, x, weight, bias, stride, padding, rest[1], rest[2], dilation)
    kernel, dilation, stride = list(weight.shape[2:]), pair(dilation), pair(stride)
    if not isinstance(padding, str):
        if any(p > d * (k - 1) + BEYOND // 2 for p, d, k in zip(pair(padding), dilation, kernel)):
            return None
    else:  # what does not divide comes after the picture, as every output asks for it
        padding = [(k - 1) * d // 2 if padding == "same" else 0 for k, d in zip(kernel, dilation)]
    numbers = {"padding": pair(padding), "dilation": dilation, "groups": rest[-1] if rest else 1}
    tensors = {"weight": weight, "bias": weight.new_zeros(len(weight)) if bias is None else bias}
    return strided(call, "conv", x, stride, numbers, **tensors)


def strided(call: Call, kind: str, x: Ref, stride: list[int], numbers: dict[str, Any], **tensors: Tensor) -> Node:
    """A node with a stride; where it differs along the axes, with their common one, and then every so many pixels."""
    common = gcd(*stride)
    if stride[0] == stride[1]:
        return call.node(kind, [x], {**numbers, "stride": stride[0]}, **tensors)
    each = [s // common for s in stride]
    size = [(n - 1) * e + 1 for n, e in zip(call.shape[2:], each)]
    whole = call.before(kind, [x], (*call.shape[:2], *size), {**numbers, "stride": common})
    call.nodes[whole].tensors = tensors
    return call.node(
        "pick", [whole], {"kept": [list(range(0, n, e)) for n, e in zip((call.shape[1], *size), (1, *each))]}
    )


@reads("conv_transpose2d")
def _transposed(
    call: Call,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    more: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Node | int | None:
    """Pixels with zeros between them, and the filters turned round."""
    if isinstance(weight, Ref) or isinstance(bias, Ref) or len(call.shape) != 4:
        return None
    reach = [(k - 1) * d - p for k, d, p in zip(weight.shape[2:], pair(dilation), pair(padding))]
    shape = call.shape_of(x)
    pixels = [
        [i // s if i % s == 0 else -1 for i in range(max(0, -r), (n - 1) * s + 1)]
        for n, s, r in zip(shape[2:], pair(stride), reach)
    ]
    apart = call.before("pick", [x], (*shape[:2], *map(len, pixels)), {"kept": [list(range(shape[1])), *pixels]})
    turned = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flip(2, 3)
    numbers = {"stride": 1, "padding": [max(0, r) for r in reach], "dilation": pair(dilation), "groups": groups}
    given = weight.new_zeros(len(turned)) if bias is None else bias
    return call.node("conv", [apart], numbers, weight=turned, bias=given)


@reads("batch_norm", "_native_batch_norm_legit_no_training")
def _batch_norm(call: Call, x: Any, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> Node | int | None:
    training, eps = (rest[0], rest[2]) if len(rest) > 2 else (False, rest[-1])
    if training or not isinstance(mean, Tensor) or len(call.shape) not in (2, 4):
        return None
    scale = (var.double() + eps).rsqrt() * (1 if weight is None else weight.double())
    return call.node("affine", [x], scale=scale, shift=(0 if bias is None else bias.double()) - mean.double() * scale)


@reads("linear")
def _linear(call: Call, x: Any, weight: Any, bias: Any = None) -> Node | int | None:
    if isinstance(weight, Ref) or len(call.shape) != 2:
        return None
    return call.node("linear", [x], weight=weight, bias=bias if bias is not None else weight.new_zeros(len(weight)))


@reads("addmm")
def _addmm(call: Call, bias: Any, x: Any, weight: Any) -> Node | int | None:
    return None if isinstance(weight, Ref) or isinstance(bias, Ref) else _linear(call, x, weight.t(), bias)


@reads("relu")
def _relu(call: Call, x: Any) -> Node | int | None:
    return call.node("bounds", [x], {"low": 0.0, "high": INFINITY})


@reads("relu6")
def _relu6(call: Call, x: Any) -> Node | int | None:
    return call.node("bounds", [x], {"low": 0.0, "high": 6.0})


@reads("clamp_min")
def _at_least(call: Call, x: Any, low: Any) -> Node | int | None:
    return _clamp(call, x, low, None)


@reads("clamp_max")
def _at_most(call: Call, x: Any, high: Any) -> Node | int | None:
    return _clamp(call, x, None, high)


@reads("hardtanh", "clamp")
def _clamp(call: Call, x: Any, low: Any = -1.0, high: Any = 1.0) -> Node | int | None:
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return None
    bounds = {"low": -INFINITY if low is None else float(low), "high": INFINITY if high is None else float(high)}
    return call.node("bounds", [x], bounds)


def _function(name: str, low: float = -INFINITY) -> Reader:
    def read(call: Call, x: Any, *_: Any) -> Node | int | None:
        numbers = {"low": low, "high": INFINITY, "function": name}
        return call.node("bounds", [x], numbers) if len(call.shape) in (2, 4) else None

    return read


for _name in ("silu", "hardswish", "tanh", "mish"):
    reads(_name)(_function(_name))
for _name in ("sigmoid", "hardsigmoid"):
    reads(_name)(_function(_name, 0.0))


@reads("leaky_relu")
def _leaky(call: Call, x: Any, slope: float = 0.01) -> Node | int | None:
    return _function(f"leaky_relu {slope}")(call, x)


@reads("elu", "celu", "selu")
def _elu(call: Call, x: Any, alpha: float = 1.0, scale: float = 1.0, inner: float = 1.0) -> Node | int | None:
    if call.name == "selu":
        alpha, scale = 1.6732632423543772, 1.0507009873554805
    return _function(f"elu {alpha} {scale} {1 / alpha if call.name == 'celu' else inner}")(call, x)


@reads("gelu")
def _gelu(call: Call, x: Any, approximate: str = "none") -> Node | int | None:
    return _function("gelu" if approximate == "none" else "gelu_tanh")(call, x)


@reads("mean")
def _mean(call: Call, x: Any, axes: Any = None, keep: Any = False) -> Node | int | None:
    plain = len(call.shape_of(x)) == 4 and axes is not None and sorted(a % 4 for a in axes) == [2, 3]
    return call.node("mean", [x]) if plain else None


@reads("flatten", "view", "reshape", "_unsafe_view", "squeeze", "unsqueeze")
def _flatten(call: Call, x: Any, *_: Any) -> Node | int | None:
    before, after = call.shape_of(x), call.shape
    if before == after:
        return x
    flat = len(after) == 2 and len(before) > 2 or len(before) == 2 and after[2:] == (1, 1)
    return call.node("flatten", [x]) if flat and after[0] == before[0] else None


@reads("cat")
def _cat(call: Call, parts: Any, axis: Any = 0) -> Node | int | None:
    plain = all(isinstance(p, Ref) for p in parts) and len(call.shape) == 4 and axis % 4 == 1
    return call.node("cat", parts) if plain else None
