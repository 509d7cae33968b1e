"""What the loss of every sample says of a gate on every unit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunus.core.replay import Replay
from prunus.observe.base import Seen, collectors
from prunus.observe.layers import Layer, input_axis, onto_units, output_axis, split_units


@collectors.register("gate", of="group", labels=True)
def gate(seen: Seen) -> dict[str, Tensor]:
    r"""Derivative of each sample's loss by a gate on everything that is read of a unit, ``(samples, units)`` a group.

    .. math:: g_{nu} = \sum_{l \in \text{consumers}} \sum_{m} x_{lnum} \frac{\partial L_n}{\partial x_{lnum}}

    over all layers :math:`l` that read the unit and all positions :math:`m`; the slopes are those through that layer
    alone, so that nothing counts twice where a residual stream is read again and again.  Units that no layer reads
    (queries, keys) are gated where layers make them.  Source: Liu et al., "Group Fisher Pruning", ICML 2021, eq. 6.
    """
    groups = seen.groups
    read = {i: axis for i, op in enumerate(groups.operators) if (axis := input_axis(groups, i)) is not None and op.macs}
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
        slopes = torch.autograd.grad(loss * size, [out for _, out in held.values()], allow_unused=True)
        total, reached = torch.zeros(size, groups.units), torch.zeros(groups.units, dtype=torch.bool)
        outputs = []
        for (number, (layer, out)), slope in zip(held.items(), slopes):
            if slope is None:
                continue
            if number in read:
                of = groups.axes[read[number]]
                reached[of[of >= 0]] = True
                total += onto_units(per_sample(layer, through(layer, slope), size), of, groups.units).cpu()
            made = output_axis(groups, number)
            if made is not None:
                outputs.append((groups.axes[made], per_sample(layer, out.detach() * slope, size)))
        made_only = torch.zeros_like(reached)
        for rows, values in outputs:
            own = (rows < 0) | reached[rows.clamp(min=0)]
            total += onto_units(values, torch.where(own, -1, rows), groups.units).cpu()
            made_only[rows[~own]] = True
        found.append((total, reached | made_only))
    return split_units(groups, found)


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
