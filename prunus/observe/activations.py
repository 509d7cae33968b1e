"""What layers read of every unit: how often it is zero, and its mean over positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prunus.core.replay import Replay
from prunus.observe.base import Seen, collectors
from prunus.observe.layers import Layer, onto_units, readers, split_units


@collectors.register("zeros", of="group")
def zeros(seen: Seen) -> dict[str, Tensor]:
    r"""Fraction of exact zeros in what layers read of a unit, ``(units,)``: :math:`\frac1{NM}\sum_{nm} 1[x_{num} = 0]`.

    Over all samples, positions and layers that read the unit.
    """
    per_sample = _read(seen, lambda x: (x == 0).double().mean(2))
    return {id: values.mean(0) for id, values in per_sample.items()}


@collectors.register("features", of="group")
def features(seen: Seen) -> dict[str, Tensor]:
    r"""Mean over positions of what layers read of a unit, ``(samples, units)``: :math:`\frac1M \sum_m x_{num}`.

    The mean of all layers that read it.
    """
    return _read(seen, lambda x: x.double().mean(2))


def _read(seen: Seen, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """``(samples, units)`` a group: `reduce` (samples, channels, positions) -> (samples, channels) at every reader."""
    groups, read, found = seen.groups, readers(seen.groups), []
    count = torch.zeros(groups.units)
    total = torch.zeros(0)
    size = 0

    def watch() -> Replay:
        nonlocal total
        weights = seen.weights()
        total = torch.zeros(1, groups.units, dtype=torch.float64)
        count.zero_()

        def before(number: int, args: Any, kwargs: Any) -> None:
            nonlocal total
            layer, of = weights.layer(groups.operators[number], args), read.get(number)
            if layer is not None and of is not None:
                values = reduce(maps(layer, seen.example.batch, groups.operators[number].shapes[0][0]))
                total = total + onto_units(values.detach().cpu(), of, groups.units)
                count.add_(onto_units(torch.ones(len(of)), of, groups.units))

        return seen.replay(before=before)

    with torch.no_grad():
        for _, _, size in seen.forwards(watch):
            found.append(((total / count.clamp(min=1)).expand(size, -1), count > 0))
    return split_units(groups, found)


def maps(layer: Layer, batch: int, rows: int) -> Tensor:
    """``(samples, channels, positions)`` of what goes into a layer."""
    positions = max(rows // max(batch, 1), 1)  # tokens: as many for every sample as in the traced example
    return layer.by_sample(layer.x, len(layer.x) // positions).mT
