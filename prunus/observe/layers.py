"""Layers as they are called: contractions of an activation with a weight, and the rows that they multiply."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from prunus.core import Groups, InputError, Operator
from prunus.core.effective import Follow, leaves_of, long_sizes
from prunus.core.operators import plain_name
from prunus.core.series import Way

Order = Mapping[tuple[str, int], int]  # name and call of a layer -> its `together`, where it is not all rows
INPUTS = {"convolution": 0, "mm": 0, "addmm": 1}  # which operand of a layer is what goes in


@dataclass(frozen=True, eq=False)
class Layer:
    r"""One call of a convolution or a linear layer, ``y = W x + b`` on every row.

    Attributes:
        name: qualified name of the weight.
        call: 0 for the first call with this weight, 1 for the second ...
        weight: the operand as ``(out, in / groups, *kernel)``, a view of the parameter whatever way it is stored.
        x: what goes in, ``(N, in, *size)`` or ``(rows, in)``.
        groups, stride, padding, dilation: of a convolution; ``()`` for a linear layer.
        together: of a linear layer, how many rows of one sample follow each other (see `Order`); 0: all of them.
    """

    name: str
    call: int
    weight: Tensor
    x: Tensor
    bias: Tensor | None = None
    groups: int = 1
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    together: int = 0

    @property
    def key(self) -> tuple[str, int]:
        """What tells this call from every other of the network."""
        return self.name, self.call

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the output that are not channels: samples, then positions."""
        kernel = self.weight.shape[2:]
        spatial = (
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(self.x.shape[2:], kernel, self.stride, self.padding, self.dilation)
        )
        return (self.x.shape[0], *spatial)

    @property
    def rows(self) -> int:
        """How many output positions there are over all samples."""
        return math.prod(self.sizes)

    @property
    def fan(self) -> int:
        """How many inputs a row has, of one convolution group."""
        return self.weight[0].numel()

    def inputs(self, index: Tensor) -> Tensor:
        """The rows numbered by `index` ``(n,)``: ``(groups, n, fan)``, in the order of ``weight.flatten(1)``."""
        if not self.stride:
            return self.x[index][None]
        places = torch.unravel_index(index, self.sizes)
        spans = zip(places[1:], self.stride, self.dilation, self.weight.shape[2:])
        many = len(self.stride)
        windows = []  # each (n, 1.., k, ..1)
        for i, (at, s, d, k) in enumerate(spans):
            steps = (torch.arange(k, device=index.device) * d).reshape([-1] + [1] * (many - 1 - i))
            windows.append((at * s)[(..., *[None] * many)] + steps)
        padded = F.pad(self.x, [p for p in reversed(self.padding) for _ in range(2)]) if any(self.padding) else self.x
        sample = places[0][(..., *[None] * many)]
        patches = padded.movedim(1, -1)[(sample, *windows)]  # (n, *kernel, in)
        return patches.movedim(-1, 1).reshape(len(index), self.groups, -1).movedim(1, 0)

    def outputs(self, y: Tensor, index: Tensor) -> Tensor:
        """The rows of an output (or of anything of its shape): ``(n, out)``."""
        return y.movedim(1, -1)[torch.unravel_index(index, self.sizes)] if self.stride else y[index]

    def by_sample(self, y: Tensor, samples: int) -> Tensor:
        """What goes in, an output, or anything of its rows: ``(samples, positions, channels)``.

        Raises: `InputError` when the rows are no multiple of the samples.
        """
        if self.stride:
            return y.flatten(2).mT if y.dim() > 2 else y[:, None]
        if len(y) % samples:
            raise InputError(
                f"layer '{self.name}' gets {len(y)} rows of {samples} samples, so that they cannot be told apart by "
                "sample. Use a criterion of weights, e.g. 'taylor'."
            )
        together = self.together or len(y) // samples
        return y.reshape(-1, samples, together, y.shape[-1]).transpose(0, 1).flatten(1, 2)


def follow_of(model: nn.Module, groups: Groups | None) -> Follow | None:
    """What finds the weights that a forward of `model` computes from parameters; None where there are none."""
    found = None if groups is None else groups.effective
    return None if found is None else Follow(found, leaves_of(model))


class Weights:
    """Finds the parameter that an operand is a view of; `order` says how the rows of linear layers lie.

    `follow` finds weights that are computed from parameters; it must be open around the forward.
    """

    def __init__(self, model: nn.Module, order: Order | None = None, follow: Follow | None = None) -> None:
        self._order = order or {}
        self._follow = follow
        self._names = {p.untyped_storage().data_ptr(): name for name, p in model.named_parameters()}
        self._parameters: Mapping[str, nn.Parameter] = dict(model.named_parameters())
        self._calls: dict[str, int] = {}

    def layer(self, op: Operator, args: Any) -> Layer | None:
        """The layer that an operator called with `args` is; None when it is none, or its weight is no parameter."""
        return self.called(op.name, args)

    def called(self, operator: str, args: Any) -> Layer | None:
        """As `layer`, of an operator by its name."""
        if operator == "convolution":
            x, weight, bias, stride, padding, dilation, transposed, _, groups = args
            name = self._name(weight)
            if transposed or name is None:
                return None
            many = weight.dim() - 2
            s, p, d = (tuple(v) * many if len(v) == 1 else tuple(v) for v in (stride, padding, dilation))
            return Layer(name, self._count(name), weight, x, bias, groups, s, p, d)
        if operator in INPUTS:
            x, weight = args[-2:]
            name = self._name(weight)
            if name is None or self._name(x) is not None:
                return None
            bias = args[0] if operator == "addmm" else None
            call = self._count(name)
            return Layer(name, call, weight.t(), x, bias, together=self._order.get((name, call), 0))
        return None

    def _name(self, tensor: Tensor) -> str | None:
        """The weight that `tensor` is, or the parameter whose memory it shows."""
        name = self._follow.name(tensor) if self._follow is not None else None
        if name is not None:
            return name
        return self._names.get(tensor.untyped_storage().data_ptr())

    def _count(self, name: str) -> int:
        self._calls[name] = self._calls.get(name, -1) + 1
        return self._calls[name]


def sample_rows(layer: Layer, most: int, generator: torch.Generator) -> Tensor:
    """Numbers of so many rows (all, where there are no more), drawn over samples and positions: ``(n,)``, sorted."""
    if layer.rows <= most:
        return torch.arange(layer.rows)
    return torch.randperm(layer.rows, generator=generator)[:most].sort().values


def input_axis(groups: Groups, number: int) -> int | None:
    """The axis (row of ``groups.axes``) of the channels that go into the layer at operator `number`, if any."""
    op = groups.operators[number]
    if op.name not in INPUTS:
        return None
    tensor = op.reads[INPUTS[op.name]]
    for before in reversed(groups.operators[:number]):
        if tensor in before.writes:
            axes = before.axes[before.writes.index(tensor)]
            return axes[1] if len(axes) > 1 else None
    return None


def readers(groups: Groups) -> dict[int, Tensor]:
    """The layers that read units, by operator: whose each input channel is, ``(channels, k)``.

    -1 stands for a channel that cannot be cut, and for a unit that only passes the layer and is read further on: what a
    depthwise convolution does with all of its units, and one of several groups with whole groups.
    """
    found = {}
    for number, op in enumerate(groups.operators):
        axis = input_axis(groups, number)
        if axis is None or op.macs is None:
            continue
        of = groups.axes[axis]
        for group in groups:
            inside = (of >= group.offset) & (of < group.offset + group.units)
            if bool(inside.any()) and Way(groups, group).passes(op):
                of = torch.where(inside, -1, of)
        if bool((of >= 0).any()):
            found[number] = of
    return found


def output_axis(groups: Groups, number: int) -> int | None:
    """The axis of the channels that come out of the layer at operator `number`, if any."""
    return groups.operators[number].axes[0][1]


def onto_units(values: Tensor, axis: Tensor, units: int) -> Tensor:
    """Sum channels ``(..., channels)`` to units ``(..., units)``; `axis` ``(channels, k)`` says whose each one is.

    >>> onto_units(torch.tensor([1., 2., 4.]), torch.tensor([[0], [1], [0]]), 2)
    tensor([5., 2.])
    """
    out = values.new_zeros(*values.shape[:-1], units + 1)
    for owner in axis.to(values.device).unbind(1):  # heads and head dimensions both own a channel: k is 1 or 2
        out.index_add_(-1, torch.where(owner < 0, units, owner), values)
    return out[..., :units]


def split_units(groups: Groups, batches: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """``(samples, units)`` by group id, of batches of ``(samples, units of all groups)`` and which units each has met.

    A batch says something of a group where it has met every unit; groups that no batch has met are absent.
    """
    found = {}
    for group in groups:
        rows = slice(group.offset, group.offset + group.units)
        of = [values[:, rows] for values, met in batches if bool(met[rows].all())]
        if of:
            found[group.id] = torch.cat(of)
    return found


class Calls(TorchDispatchMode):
    """Tells of every call of a layer in a forward, traced or not: `before` and `after` it has run."""

    def __init__(
        self,
        model: nn.Module,
        before: Callable[[Layer], None],
        after: Callable[[Layer, Tensor], None] | None = None,
        follow: Follow | None = None,
    ) -> None:
        super().__init__()
        self.weights, self.before, self.after = Weights(model, follow=follow), before, after

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        layer = self.weights.called(plain_name(func), args)
        if layer is not None:
            self.before(layer)
        out = func(*args, **(kwargs or {}))
        if layer is not None and self.after is not None:
            self.after(layer, out)
        return out


def as_rows(tensor: Tensor, layer: Layer) -> Tensor:
    """A tensor shaped like the parameter of a layer as ``(out, fan)``, in the order of the layer's rows."""
    return (tensor.t() if transposed(layer, tensor) else tensor).flatten(1)


def as_parameter(rows: Tensor, layer: Layer, parameter: Tensor) -> Tensor:
    """The inverse of `as_rows`: ``(out, fan)`` in the shape of the parameter."""
    return (rows.t() if transposed(layer, parameter) else rows).reshape(parameter.shape)


def transposed(layer: Layer, parameter: Tensor) -> bool:
    """Whether a parameter is stored as (in, out)."""
    if layer.weight.dim() > 2:  # a convolution; one of kernel size 1 may read a longer kernel of a parameter by inputs
        return False
    if parameter.dim() != 2:  # with dimensions of size one
        return long_sizes(layer.weight.shape) != long_sizes(parameter.shape)
    if layer.weight.shape != parameter.shape or parameter.shape[0] != parameter.shape[1]:
        return layer.weight.shape != parameter.shape
    first, own = layer.weight.stride(), parameter.stride()  # of a square one, how it lies in memory
    return (first[0] < first[1]) != (own[0] < own[1])
