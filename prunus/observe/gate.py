"""What the loss of every sample says of a gate on every unit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunus.core import Groups
from prunus.core.replay import Replay
from prunus.core.series import Series
from prunus.observe.base import Seen, collectors
from prunus.observe.layers import Layer, onto_units, output_axis, readers, split_units


@collectors.register("gate", of="group", labels=True)
def gate(seen: Seen) -> dict[str, Tensor]:
    r"""Derivative of each sample's loss by a gate on everything that is read of a unit, ``(samples, units)`` a group.

    .. math:: g_{nu} = \sum_{l \in \text{consumers}} \sum_{m} x_{lnum} \frac{\partial L_n}{\partial x_{lnum}}

    over all layers :math:`l` that read the unit and all positions :math:`m`; the slopes are those through that layer
    alone, so that nothing counts twice where a residual stream is read again and again; what a unit only passes (a
    depthwise convolution) does not count.  Units that no layer reads are gated where layers make them; queries and
    keys, which are multiplied, each with half.  Source: Liu et al., "Group Fisher Pruning", ICML 2021, eq. 6.
    """
    groups, read = seen.groups, readers(seen.groups)
    found: list[tuple[Tensor, Tensor]] = []
    held: dict[int, tuple[Layer, Tensor]] = {}

    def watch() -> Replay:
        held.clear()
        weights = seen.weights()

        def after(number: int, args: Any, kwargs: Any, out: Any) -> None:
            layer = weights.layer(groups.operators[number], args)
            if layer is not None:
                held[number] = layer, out

        return seen.replay(after=after)

    for loss, size in seen.batches(watch):
        made = _made(groups, [read[number] for number in held if number in read])
        slopes = torch.autograd.grad(loss * size, [out for _, out in held.values()], allow_unused=True)
        total, reached = torch.zeros(size, groups.units), torch.zeros(groups.units, dtype=torch.bool)
        for (number, (layer, out)), slope in zip(held.items(), slopes):
            if slope is None:
                continue
            if number in read:
                reached[read[number][read[number] >= 0]] = True
                values = per_sample(layer, through(layer, slope), size)
                total += onto_units(values, read[number], groups.units).cpu()
            for of, share in made.get(number, ()):
                reached[of[of >= 0]] = True
                total += share * onto_units(per_sample(layer, out.detach() * slope, size), of, groups.units).cpu()
        found.append((total, reached))
    return split_units(groups, found)


def _made(groups: Groups, read: list[Tensor]) -> dict[int, list[tuple[Tensor, float]]]:
    """Where gates stand of units that no layer has `read`: by operator, whose each output channel is, and the share."""
    known = torch.zeros(groups.units, dtype=torch.bool)
    for of in read:
        known[of[of >= 0]] = True
    found: dict[int, list[tuple[Tensor, float]]] = {}
    for group in groups:
        if bool(known[group.offset : group.offset + group.units].all()):
            continue
        for number, share in Series(groups, group, ("out", "depthwise")).places().items():
            axis = output_axis(groups, number)
            if axis is not None:
                of = groups.axes[axis]
                inside = (of >= group.offset) & (of < group.offset + group.units)
                found.setdefault(number, []).append((torch.where(inside, of, -1), share))
    return found


def through(layer: Layer, slope: Tensor) -> Tensor:
    """The input of a layer times the slope of the loss by it through this layer alone, of the input's shape."""
    x, weight = layer.x.detach(), layer.weight.detach()
    if not layer.stride:
        return x * (slope @ weight)
    many = len(layer.stride)
    back = torch.ops.aten.convolution_backward(
        slope, x, weight, None, layer.stride, layer.padding, layer.dilation, False, [0] * many, layer.groups,
        [True, False, False],
    )[0]  # fmt: skip
    return x * back


def per_sample(layer: Layer, values: Tensor, size: int) -> Tensor:
    """``(samples, channels)``: summed over positions."""
    return layer.by_sample(values.detach(), size).sum(1)
