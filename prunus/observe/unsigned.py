"""A forward made again with nothing negative in it: absolute weights, and activations that change nothing.

What is not negative goes through a rectifier as it is and would saturate in others (ReLU6, tanh, sigmoid): activations
are the identity.  Everything is then as large as what it is made of, and nothing is taken off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from prunus.core import InputError
from prunus.core.operators import plain_name
from prunus.core.running import laid_out_as

ACTIVATIONS = ("hardswish", "glu", "log_sigmoid_forward", "_softmax", "_log_softmax")  # torch calls others pointwise
COPIES = ("_to_copy", "clone", "contiguous", "detach", "alias", "lift_fresh")
FACTORS = ("mul", "div", "fill", "zero")  # pointwise as well, and no activations
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mul": torch.mul, "mm": torch.mm, "bmm": torch.bmm}


class Call(NamedTuple):
    """One ATen call of a forward.

    `moving` numbers the operands that inputs went into; where there are none, `fixed` are copies of the outputs.
    """

    function: Any
    args: Any
    kwargs: Any
    out: Any
    moving: frozenset[int]
    fixed: list[Tensor]

    @property
    def name(self) -> str:
        """``relu`` for ``aten::relu_``."""
        return plain_name(self.function).rstrip("_")


class Record(TorchDispatchMode):
    """Keeps every call of a forward of the `inputs`."""

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._moving = {_memory(t) for t in inputs}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        outs = tensors(out)
        moving = frozenset(id(t) for t in tensors((args, kwargs)) if _memory(t) in self._moving)
        self._moving.update(_memory(t) for t in outs if moving)
        fixed = [] if moving else [t.detach().clone() for t in outs]
        self.calls.append(Call(func, args, kwargs, out, moving, fixed))
        return out


class Unsigned:
    """The recorded calls made again, in float64 and with gradients by `weights`; `value` tells what became of a tensor.

    What forward computes from constants alone, and each of `weights`, keeps its size.  Norms scale by what their own
    statistics are here, without a shift of the mean; a product of two activations is as large as the geometric mean of
    both.

    Raises: `InputError` where an operator cannot be made again.
    """

    def __init__(self, calls: list[Call], weights: Iterable[Tensor]) -> None:
        self._values: dict[int, Tensor] = {}
        self._kept: list[Any] = [calls]  # a number stands for a tensor as long as it lives
        self._weights = {id(t) for t in weights}
        for call in calls:
            with torch.enable_grad():
                self._run(call)

    def value(self, tensor: Tensor) -> Tensor:
        """What stands for a tensor of the recorded forward: for one that was not computed, its absolute value."""
        if id(tensor) not in self._values:
            self._kept.append(tensor)
            self._put(tensor, tensor)
        return self._values[id(tensor)]

    def _put(self, tensor: Tensor, value: Tensor) -> None:
        if value.is_floating_point():
            value = value.detach().double().abs()
            value = torch.where(value.isfinite(), value, 0.0).requires_grad_(id(tensor) in self._weights)
        self._values[id(tensor)] = value

    def _run(self, call: Call) -> None:
        outs, view = tensors(call.out), call.function.is_view or call.name in COPIES
        weight = not call.moving and any(id(t) in self._weights for t in outs)
        args, kwargs = tree_map_only(Tensor, self.value, (call.args, call.kwargs))
        if weight or not (call.moving or view or any(t.requires_grad for t in tensors((args, kwargs)))):
            for tensor, value in zip(outs, call.fixed):
                self._put(tensor, value)
            return
        try:
            found = tensors(_again(call, args, kwargs))
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise InputError(
                f"what flows through the operator {call.name} cannot be computed: {error}. Use a criterion of weights "
                "or of data, e.g. 'l2'."
            ) from error
        for old, new in zip(outs, found):
            alike = call.function.is_view or new.shape != old.shape or new is args[0]
            self._values[id(old)] = (new if alike else laid_out_as(new, old)) if old.is_floating_point() else old


def identity(function: Any, name: str) -> bool:
    """Whether an operator with one operand is an activation, taken as the identity, or only copies."""
    return (torch.Tag.pointwise in function.tags and name not in FACTORS) or name in (*ACTIVATIONS, *COPIES)


def norm_factor(name: str, x: Tensor, scale: Tensor, weight: Tensor | None) -> Tensor:
    """By what a norm multiplies `x`: its inverse deviations `scale` times its absolute weight, in float64."""
    channels = (-1, *[1] * (x.dim() - 2))
    if name == "native_group_norm":
        scale = scale.repeat_interleave(x.shape[1] // scale.shape[1], 1).reshape(x.shape[0], *channels)
    elif "batch_norm" in name:
        scale = scale.reshape(channels)
    if weight is None:
        return scale.double()
    return scale.double() * weight.double().abs().reshape(weight.shape if name == "native_layer_norm" else channels)


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in arguments or outputs."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata) if tensor.layout is torch.strided else id(tensor)


def _again(call: Call, args: Any, kwargs: Any) -> Any:
    """What a call gives for operands that are not negative."""
    if call.function.is_view:
        return call.function(*args, **kwargs)
    in_place = plain_name(call.function).endswith("_")
    found = _value(call, (args[0].clone(), *args[1:]) if in_place else args, kwargs)
    if found is not None:
        return args[0].copy_(found) if in_place else found.clone()
    out = call.function(*args, **kwargs)
    return out if in_place else [t.abs() if t.is_floating_point() else t for t in tensors(out)]


def _value(call: Call, args: Any, kwargs: Any) -> Tensor | None:
    """What a call whose operator does something else here than it does gives; None for one that does the same."""
    name, given = call.name, dict(zip((a.name for a in call.function._schema.arguments), args)) | kwargs
    old = tensors((call.args, call.kwargs))
    moving = [t for t, was in zip(tensors((args, kwargs)), old) if id(was) in call.moving]
    floats = [t for t in tensors((args, kwargs)) if t.is_floating_point()]
    if name in ("native_layer_norm", "native_group_norm") or "batch_norm" in name:
        return _norm(call, given)
    if "scaled_dot_product" in name:
        return _attention(floats, given.get("is_causal"), call.kwargs.get("attn_mask"))
    if len(moving) == 2 and name in PRODUCTS:
        return _product(PRODUCTS[name], *moving)
    if name == "baddbmm" and len(moving) >= 2:
        return args[0] + _product(torch.bmm, args[1], args[2])
    if name == "div" and isinstance(args[1], Tensor):
        return args[0] / torch.where(args[1] > 0, args[1].detach(), 1.0)
    if name in ("sub", "rsub") and len(floats) == 2:
        return floats[0] + floats[1]
    if name in ("rsqrt", "reciprocal"):  # of what a norm divides by
        return torch.ones_like(floats[0])
    if name == "glu":
        return _product(torch.mul, *args[0].chunk(2, given.get("dim", -1)))
    if len(floats) == 1 and identity(call.function, name) and tensors(call.out)[0].is_floating_point():
        here = tensors(call.out)[0] != 0  # a softmax is zero where it is masked
        return torch.where(here, floats[0], 0.0) if name == "_softmax" else floats[0]
    return None


def _norm(call: Call, given: dict[str, Any]) -> Tensor:
    """Divided by the deviation, without the mean taken off."""
    x, bias, mean = given["input"], given["bias"], given.get("running_mean")
    if mean is not None and not given.get("training"):
        return tensors(call.function(**{**given, "running_mean": torch.zeros_like(mean)}))[0]
    with torch.no_grad():
        scale = call.function(**given)[2]
    out = x * norm_factor(call.name, x, scale, given["weight"])
    return (
        out if bias is None else out + bias.reshape(bias.shape if "layer" in call.name else (-1, *[1] * (x.dim() - 2)))
    )


def _attention(floats: list[Tensor], causal: Any, mask: Tensor | None) -> Tensor:
    """Of queries, keys and values, without the softmax: what is masked is zero."""
    q, k, v = floats[:3]
    weights = _product(torch.matmul, q, k.mT)
    weights = weights.tril() if causal else weights
    if mask is not None:
        weights = torch.where(mask.exp() > 0, weights, 0.0)
    return _product(torch.matmul, weights, v)


def _product(of: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """A product of two activations, as large as the geometric mean of the two."""
    out = of(a, b)
    with torch.no_grad():
        mean = out.mean()
        size = (a.mean() * b.mean()).sqrt() / torch.where(mean > 0, mean, 1.0)
    return out * size
