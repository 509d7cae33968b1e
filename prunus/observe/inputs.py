"""What goes into the layers whose weights are scored: norms and second moments, by input."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from prunus.core import Slice
from prunus.observe.base import Seen, collectors
from prunus.observe.layers import Calls, Layer, as_parameter, transposed
from prunus.observe.moments import LARGEST, Rows


class Moment(NamedTuple):
    """Second moments of what goes into a layer ``(groups, fan, fan)``; whether its weight is stored as (in, out)."""

    values: Tensor
    transposed: bool


@collectors.register("input-norms")
def input_norms(seen: Seen) -> dict[str, Tensor]:
    r"""Euclidean norm of the input that every weight multiplies, $\lVert X_j \rVert_2$ over all samples and positions.

    Unlabelled data, all rows, in float64; several calls of a layer add up.  Returns ``{weight name: tensor of its
    shape}``, the same for all outputs of a convolution group.
    """
    found: dict[str, tuple[Layer, Tensor]] = {}
    slices = _weights(seen, "out", "depthwise", "in")

    def before(layer: Layer) -> None:
        if layer.name in slices:
            found[layer.name] = layer, found.get(layer.name, (layer, 0.0))[1] + _squares(layer)

    _watch(seen, before)
    out = {}
    for name, (layer, total) in found.items():
        rows = total.sqrt()[:, None].expand(-1, len(layer.weight) // layer.groups, -1).flatten(0, 1)  # (out, fan)
        out[name] = as_parameter(rows, layer, slices[name].tensor)
    return out


@collectors.register("input-moments", of="group")
def input_moments(seen: Seen) -> dict[str, dict[str, Moment]]:
    r"""Second moments of what goes into the layers that make the units, $E[x x^T]$, by weight name.

    Of a layer with a bias those of $x - \bar x$, since the bias takes up the mean.  Unlabelled data; rows are drawn
    from all positions, 20 for every unknown where there are as many; float64.  Groups with a layer that was not called,
    or with more than 8,192 inputs a row, are absent.
    """
    rows = Rows(seen)
    sums: dict[str, list[Any]] = {}
    slices = _weights(seen, "out")

    def before(layer: Layer) -> None:
        if layer.name not in slices or layer.fan > LARGEST:
            return
        x = layer.inputs(rows(layer)).detach().double()  # (groups, n, fan)
        entry = sums.setdefault(
            layer.name, [0, 0.0, 0.0, layer.bias is not None, transposed(layer, slices[layer.name].tensor)]
        )
        entry[:3] = [entry[0] + x.shape[1], entry[1] + x.sum(1), entry[2] + x.mT @ x]

    _watch(seen, before)
    found = {}
    for name, (n, m, h, centred, turned) in sums.items():
        found[name] = Moment(h / n - (m[:, :, None] * m[:, None] / n**2 if centred else 0), turned)
    wanted = {g.id: [s.name for s in g.with_role("out") if s.name in slices] for g in seen.groups}
    return {
        id: {name: found[name] for name in names}
        for id, names in wanted.items()
        if names and all(name in found for name in names)
    }


def _squares(layer: Layer) -> Tensor:
    """Sums of squares of the rows that go into a layer: ``(groups, fan)`` in float64."""
    x = layer.x.detach().double().square()
    if not layer.stride:
        return x.sum(0)[None]
    kernel = x.new_zeros(layer.groups, x.shape[1] // layer.groups, *layer.weight.shape[2:])
    ones = x.new_ones(x.shape[0], layer.groups, *layer.sizes[1:])  # the slope of a sum in its kernel sums the inputs
    where = (layer.stride, layer.padding, layer.dilation, False, [0] * len(layer.stride), layer.groups)
    slope: Tensor = torch.ops.aten.convolution_backward(ones, x, kernel, None, *where, [False, True, False])[1]
    return slope.flatten(1)


def _weights(seen: Seen, *roles: str) -> dict[str, Slice]:
    """The weights that have one of `roles` in a group, by name."""
    slices = (s for g in seen.groups for s in g.with_role(*roles) if s.tensor.dim() > 1)
    return {s.name: s for s in slices}


def _watch(seen: Seen, before: Any) -> None:
    with torch.no_grad():
        for _ in seen.forwards(lambda: Calls(seen.model, before, follow=seen.follow)):
            pass
