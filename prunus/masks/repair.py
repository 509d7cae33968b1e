r"""Masked layers solved again, in the order of execution, so that they give what they gave with all weights.

.. math:: \min_{V, b} \tfrac1N \sum_n \lVert t_n - V \hat x_n - b \rVert^2 + \lambda \lVert V - W \rVert^2

with what goes in now, :math:`\hat x`, and what came out before, :math:`t`.  As a function of :math:`V` it is
:math:`\mathrm{tr}\,(V - W^*) H (V - W^*)^T` with :math:`H = E[\hat x \hat x^T] + \lambda I`: the system that
`prunus.masks.solve` takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import Group, InputError, Inputs
from prunus.core.running import undisturbed
from prunus.core.undo import keep_values
from prunus.masks.solve import Solution, System
from prunus.masks.tensors import Tensors
from prunus.observe.layers import Calls, Layer, as_parameter, as_rows, sample_rows
from prunus.observe.moments import LARGEST
from prunus.recovery.calibration import gather

PER_UNKNOWN = 20  # rows of a least-squares system for every unknown, where there are so many
LEAST_ROWS = 8192
RIDGE = 1e-2  # of the mean square of the inputs, as SparseGPT has it


@dataclass(frozen=True, eq=False)
class Wanted:
    """What the masked layers gave before: sampled rows ``(n,)`` and values ``(n, out)`` by weight, on these inputs."""

    inputs: Inputs
    rows: Mapping[str, Tensor]
    values: Mapping[str, Tensor]
    shared: frozenset[str]  # weights that several calls share, which are not solved


def outputs(model: nn.Module, names: Iterable[str], data: Iterable[Any], limit: int | None, seed: int) -> Wanted:
    """Run the network on unlabelled data and keep what the layers of the weights `names` give at sampled rows."""
    wanted, inputs = set(names), gather(data, limit)
    generator = torch.Generator().manual_seed(seed)
    rows: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    shared = set()

    def before(layer: Layer) -> None:
        if layer.name in wanted and layer.fan > LARGEST:
            return  # its system would take more than the memory there is
        if layer.name in wanted and layer.call == 0:
            rows[layer.name] = sample_rows(layer, max(PER_UNKNOWN * (layer.fan + 1), LEAST_ROWS), generator)
        elif layer.name in wanted:
            shared.add(layer.name)

    def after(layer: Layer, out: Tensor) -> None:
        if layer.name in rows and layer.call == 0:
            values[layer.name] = layer.outputs(out, rows[layer.name]).clone()

    with undisturbed(model), Calls(model, before, after):
        inputs.map(torch.clone)(model)
    return Wanted(inputs, rows, values, frozenset(shared))


def solve_(
    model: nn.Module,
    groups: Tensors,
    weights: Mapping[str, Tensor],
    keep: Mapping[str, Tensor],
    wanted: Wanted,
    repair: Callable[[System], Solution],
    ridge: float = RIDGE,
) -> dict[str, Tensor]:
    """Solve the masked layers of a network again: what the masks became, by weight, for those that were solved.

    One forward of all samples: a layer is solved when it is reached, so that those behind it see what it gives now.

    Args:
        weights: as they were before masking; they are what a layer stays close to.
        keep: the masks, True = keep, of the shapes of the weights.
    """
    parameters, solved = dict(model.named_parameters()), {}

    def before(layer: Layer) -> None:
        if layer.name not in wanted.values or layer.name in wanted.shared:
            return
        group = groups[layer.name]
        x = layer.inputs(wanted.rows[layer.name]).double()  # (conv groups, n, fan)
        target = wanted.values[layer.name].double()
        prior, mask = (as_rows(t[layer.name], layer) for t in (weights, keep))
        found = []
        for xg, tg, wg, kg in zip(x, *(t.chunk(layer.groups, d) for t, d in ((target, 1), (prior, 0), (mask, 0)))):
            found.append(_solve(xg, tg, wg.double(), kg, repair, _columns(group, groups, layer), layer, ridge))
        new, kept = (torch.cat([f[i] for f in found]) for i in (0, 1))
        keep_values(parameters[layer.name], layer.bias)
        layer.weight.copy_(new.reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(torch.cat([f[2] for f in found]))
        solved[layer.name] = as_parameter(kept, layer, parameters[layer.name])

    with undisturbed(model), Calls(model, before):
        wanted.inputs.map(torch.clone)(model)
    return solved


def _solve(
    x: Tensor,
    target: Tensor,
    prior: Tensor,
    keep: Tensor,
    repair: Callable[[System], Solution],
    columns: tuple[Tensor, tuple[int, int] | None, bool],
    layer: Layer,
    ridge: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, mask and bias of one convolution group: ``(out, fan)`` twice and ``(out,)``."""
    n, fan = x.shape
    means = (x.mean(0), target.mean(0)) if layer.bias is not None else (x.new_zeros(fan), target.new_zeros(1))
    xc, tc = x - means[0], target - means[1]
    gram = xc.mT @ xc / n
    damp = ridge * gram.diagonal().mean().clamp(min=1e-30)
    h = gram + damp * torch.eye(fan, dtype=x.dtype, device=x.device)
    best = torch.linalg.solve(h, xc.mT @ tc / n + damp * prior.mT).mT  # (out, fan)
    new, kept = repair(System(best, h, keep.to(x.device), *columns))
    return new, kept, means[1] - new @ means[0]


def _columns(group: Group, groups: Tensors, layer: Layer) -> tuple[Tensor, tuple[int, int] | None, bool]:
    """The order of a row's columns that has parts side by side, the pattern, and whether rows are even."""
    fan = layer.fan
    if groups.pattern is None:
        return torch.arange(fan, device=layer.weight.device), None, group.parts > 1
    kernel = layer.weight[0, 0].numel()
    order = torch.arange(fan, device=layer.weight.device).reshape(-1, kernel).t().reshape(-1)  # (kernel, in)
    return order, groups.pattern, False


def check_choice(repair: str, groups: Tensors) -> None:
    """Raise `InputError` when a repair that chooses weights by itself is asked to keep blocks together."""
    if repair in ("sparsegpt", "obc") and any(g.slices[0].index.shape[1] > 1 for g in groups):
        raise InputError(
            f"repair='{repair}' chooses single weights, and the units here are blocks of them. Use repair='exact' or "
            "'fast', which take the mask as it is, or grain='element' or '2:4'."
        )
