"""How ATen operators are read: each becomes a node, or is left to torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from prunus.runtime.graph import INFINITY, Node, Ref

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
    """An operator that is read: its name, the shape of what it gives, and the nodes before it."""

    def __init__(self, nodes: dict[int, Node], shape: tuple[int, ...], name: str) -> None:
        self.nodes, self.shape, self.name = nodes, shape, name

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
    call: Call, x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, *rest: Any
) -> Node | int | None:
    transposed = len(rest) > 1 and rest[0]
    if isinstance(weight, Ref) or isinstance(bias, Ref) or len(call.shape) != 4 or transposed:
        return None
    kernel, dilation, stride = list(weight.shape[2:]), pair(dilation), pair(stride)
    if isinstance(padding, str):
        total = [(k - 1) * d if padding == "same" else 0 for k, d in zip(kernel, dilation)]
        padding = [t // 2 for t in total]
        if any(t % 2 for t in total):
            return None
    if stride[0] != stride[1]:
        return None
    groups = rest[-1] if rest else 1
    numbers = {"stride": stride[0], "padding": pair(padding), "dilation": dilation, "groups": groups}
    return call.node("conv", [x], numbers, weight=weight, bias=weight.new_zeros(len(weight)) if bias is None else bias)


@reads("batch_norm", "_native_batch_norm_legit_no_training")
def _batch_norm(call: Call, x: Any, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> Node | int | None:
    training, eps = (rest[0], rest[2]) if len(rest) > 2 else (False, rest[-1])
    if training or not isinstance(mean, Tensor) or len(call.shape) != 4:
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


@reads("hardtanh", "clamp")
def _clamp(call: Call, x: Any, low: Any = -1.0, high: Any = 1.0) -> Node | int | None:
    bounds = {"low": -INFINITY if low is None else float(low), "high": INFINITY if high is None else float(high)}
    return call.node("bounds", [x], bounds)


def _function(name: str, low: float = -INFINITY) -> Reader:
    def read(call: Call, x: Any, *_: Any) -> Node | int | None:
        numbers = {"low": low, "high": INFINITY, "function": name}
        return call.node("bounds", [x], numbers) if len(call.shape) == 4 else None

    return read


for _name, _low in (("sigmoid", 0.0), ("silu", -INFINITY), ("hardsigmoid", 0.0), ("hardswish", -INFINITY)):
    reads(_name)(_function(_name, _low))


@reads("gelu")
def _gelu(call: Call, x: Any, approximate: str = "none") -> Node | int | None:
    return _function("gelu" if approximate == "none" else "gelu_tanh")(call, x)


@reads("mul")
def _mul(call: Call, a: Any, b: Any) -> Node | int | None:
    if not (isinstance(a, Ref) and isinstance(b, Ref)) or len(call.shape) != 4:
        return None
    if call.shape_of(a) != call.shape:
        a, b = b, a
    wanted = call.shape, (*call.shape[:2], 1, 1)
    return call.node("mul", [a, b]) if call.shape_of(a) == call.shape and call.shape_of(b) in wanted else None


@reads("add")
def _add(call: Call, a: Any, b: Any, alpha: Any = 1) -> Node | int | None:
    plain = isinstance(a, Ref) and isinstance(b, Ref) and alpha == 1 and len(call.shape) == 4
    return call.node("add", [a, b]) if plain and call.shape_of(a) == call.shape_of(b) else None


@reads("max_pool2d", "avg_pool2d")
def _pool(call: Call, x: Any, kernel: Any, stride: Any = (), padding: Any = 0, *rest: Any) -> Node | int | None:
    if len(call.shape) != 4:
        return None
    kind, kernel, padding = "max" if "max" in call.name else "mean", pair(kernel), pair(padding)
    stride = pair(stride) if stride else kernel
    if kind == "max":
        dilation, ceil = list(rest) + [1, False][len(rest) :]
        odd = pair(dilation) != [1, 1]
    else:
        ceil, counted, divisor = list(rest) + [False, True, None][len(rest) :]
        odd = (not counted and any(padding)) or divisor is not None
    whole = [(n + 2 * p - k) // stride[0] + 1 for n, p, k in zip(call.shape_of(x)[2:], padding, kernel)]
    beyond = list(call.shape[2:]) != whole  # windows that begin in the picture and end outside
    if stride[0] != stride[1] or odd or (beyond and kind != "max"):
        return None
    return call.node(
        "pool", [x], {"of": kind, "kernel": kernel, "stride": stride[0], "padding": padding, "beyond": beyond}
    )


@reads("adaptive_avg_pool2d", "_adaptive_avg_pool2d")
def _adaptive(call: Call, x: Any, size: Any) -> Node | int | None:
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
def _mean(call: Call, x: Any, axes: Any = None, keep: Any = False) -> Node | int | None:
    plain = len(call.shape_of(x)) == 4 and axes is not None and sorted(a % 4 for a in axes) == [2, 3]
    return call.node("mean", [x]) if plain else None


@reads("flatten", "view", "reshape", "_unsafe_view", "squeeze")
def _flatten(call: Call, x: Any, *_: Any) -> Node | int | None:
    before = call.shape_of(x)
    if before == call.shape:
        return x
    return call.node("flatten", [x]) if len(call.shape) == 2 and call.shape[0] == before[0] else None


@reads("cat")
def _cat(call: Call, parts: Any, axis: Any = 0) -> Node | int | None:
    plain = all(isinstance(p, Ref) for p in parts) and len(call.shape) == 4 and axis % 4 == 1
    return call.node("cat", parts) if plain else None


@reads("slice")
def _slice(call: Call, x: Any, axis: Any = 0, start: Any = None, end: Any = None, step: Any = 1) -> Node | int | None:
    shape = call.shape_of(x)
    if shape == call.shape:
        return x
    if len(shape) != 4 or axis == 0:
        return None
    kept = [list(range(n)) for n in shape[1:]]
    kept[axis - 1] = kept[axis - 1][slice(start, end, step)]
    return call.node("pick", [x], {"kept": kept})


@reads("pad", "constant_pad_nd")
def _pad(call: Call, x: Any, amounts: Any, mode: Any = "constant", value: Any = 0.0) -> Node | int | None:
    if mode not in ("constant", 0, 0.0) or value or len(call.shape_of(x)) != 4 or len(amounts) > 6:
        return None
    kept = []
    for axis, n in zip((3, 2, 1), (*reversed(call.shape_of(x)[1:]),)):
        before, after = amounts[2 * (3 - axis) : 2 * (3 - axis) + 2] or (0, 0)
        kept.append([i if 0 <= i < n else -1 for i in range(-before, n + after)])
    return call.node("pick", [x], {"kept": kept[::-1]})


@reads("upsample_nearest2d")
def _nearest(call: Call, x: Any, *_: Any) -> Node | int | None:
    (channels, *before), after = call.shape_of(x)[1:], call.shape[2:]
    if any(b % a for a, b in zip(before, after)):
        return None
    pixels = [[i // (b // a) for i in range(b)] for a, b in zip(before, after)]
    return call.node("pick", [x], {"kept": [list(range(channels)), *pixels]})
