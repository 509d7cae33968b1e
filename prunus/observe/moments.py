"""Second moments of what layers read, and of the slopes of the loss at what they give."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prunus.core import Groups, InputError
from prunus.core.replay import Replay
from prunus.observe.base import Seen, collectors
from prunus.observe.layers import Layer, input_axis, sample_rows

PER_UNKNOWN = 20  # rows for every unknown, where there are so many
LARGEST = 8192  # inputs of a row; a layer with more has a moment matrix of over half a gigabyte


@dataclass(frozen=True, eq=False)
class Consumer:
    r"""A layer that reads the units of a group: everything in float64.

    Attributes:
        weight: ``(out, fan)``.
        moment: ``(fan, fan)``, the covariance of its input rows (a bias takes up the mean).
        columns: ``(units, m)``, the columns of `weight` that belong to each unit.
        curvature: ``(out, out)``, summed outer products of the slopes of the loss at its output, per sample; or None.
        slope: ``(out, fan)``, of the loss by the weight; or None.
        kernel: how many columns in a row belong to one input channel.
    """

    weight: Tensor
    moment: Tensor
    columns: Tensor
    curvature: Tensor | None = None
    slope: Tensor | None = None
    kernel: int = 1


@collectors.register("moments", of="group")
def moments(seen: Seen) -> dict[str, tuple[Consumer, ...]]:
    r"""Covariance of the rows that every reading layer gets, :math:`E[(x - \bar x)(x - \bar x)^T]`, as `Consumer`.

    Unlabelled data; rows are drawn from all positions, 20 for every unknown where there are as many.
    """
    return consumers(seen.groups, _covariances(seen), {})


@collectors.register("curved-moments", of="group")
def curved_moments(seen: Seen) -> dict[str, tuple[Consumer, ...]]:
    r"""As ``moments``, with the curvature of the loss at a layer's output, :math:`\frac1N\sum_n\sum_m g_{nm}g_{nm}^T`.

    :math:`g` is the slope of the cross-entropy for labels drawn from the network's own predictions (the true Fisher
    matrix; no labels are needed).  With both, :math:`\tfrac12 \mathrm{tr}(G\, \Delta W H \Delta W^T)` is the expected
    rise of the loss (Martens & Grosse, "K-FAC", ICML 2015).
    """
    return consumers(seen.groups, _covariances(seen), _curvatures(seen))


def _covariances(seen: Seen) -> dict[int, tuple[Tensor, Tensor]]:
    """Per operator, the weight ``(out, fan)`` and the covariance of its input rows."""
    return {i: (w, h - torch.outer(m, m)) for i, (w, m, h) in second_moments(seen).items()}


def second_moments(seen: Seen) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    """Per operator, the weight ``(out, fan)``, the mean of its input rows and that of their outer products."""
    groups, rows = seen.groups, Rows(seen)
    sums: dict[int, list[Any]] = {}

    def watch() -> Replay:
        weights = seen.weights()

        def before(number: int, args: Any, kwargs: Any) -> None:
            layer = weights.layer(groups.operators[number], args)
            if layer is None or layer.groups > 1 or layer.fan > LARGEST or input_axis(groups, number) is None:
                return
            x = layer.inputs(rows(layer))[0].detach().double()  # (n, fan)
            if number not in sums:
                sums[number] = [layer.weight.detach().flatten(1).double(), 0, 0.0, 0.0]
            entry = sums[number]
            entry[1:] = [entry[1] + len(x), entry[2] + x.sum(0), entry[3] + x.mT @ x]

        return seen.replay(before=before)

    with torch.no_grad():
        for _ in seen.forwards(watch):
            pass
    return {i: (w, m / n, h / n) for i, (w, n, m, h) in sums.items()}


class Rows:
    """Draws rows of layers, batch after batch: of every call 20 an unknown in all, evenly over the samples."""

    def __init__(self, seen: Seen) -> None:
        self._seen, self._samples = seen, seen.samples
        self._generator = torch.Generator().manual_seed(0)
        self._drawn: Counter[tuple[int, str, int]] = Counter()

    def __call__(self, layer: Layer) -> Tensor:
        """The numbers of those to be taken of the batch that runs ``(n,)``; all, where there are not as many."""
        call = self._seen.call
        key = (call, *layer.key)
        most = -(-PER_UNKNOWN * (layer.fan + 1) * self._seen.done[call] // self._samples[call])
        index = sample_rows(layer, most - self._drawn[key], self._generator)
        self._drawn[key] += len(index)
        return index


def _curvatures(seen: Seen) -> dict[int, Tensor]:
    groups, generator = seen.groups, torch.Generator().manual_seed(0)
    held: dict[int, Tensor] = {}
    sums: dict[int, Tensor] = {}
    samples: Counter[int] = Counter()

    def watch() -> Replay:
        held.clear()
        weights = seen.weights()

        def after(number: int, args: Any, kwargs: Any, out: Any) -> None:
            if weights.layer(groups.operators[number], args) is not None and input_axis(groups, number) is not None:
                held[number] = out

        return seen.replay(after=after)

    for out, _, size in seen.forwards(watch):
        scores = out if isinstance(out, Tensor) else getattr(out, "logits", None)
        if not isinstance(scores, Tensor) or scores.dim() != 2:
            raise InputError(
                "the curvature of the loss is that of a classifier with scores (samples, classes); this network "
                f"returns {type(out).__name__}. Use 'obs', which looks at layers alone."
            )
        drawn = torch.multinomial(scores.detach().softmax(1).cpu(), 1, generator=generator)[:, 0].to(scores.device)
        loss = F.cross_entropy(scores, drawn, reduction="sum")
        for number, slope in zip(held, torch.autograd.grad(loss, list(held.values()), allow_unused=True)):
            if slope is not None:
                g = slope.flatten(2) if slope.dim() > 2 else slope.mT[None]  # (samples or 1, out, positions or rows)
                sums[number] = sums.get(number, 0) + (g @ g.mT).sum(0, dtype=torch.float64)
        samples.update(dict.fromkeys(held, size))
    return {number: value / samples[number] for number, value in sums.items()}


def consumers(
    groups: Groups,
    seen: dict[int, tuple[Tensor, Tensor]],
    curvatures: dict[int, Tensor],
    slopes: dict[int, Tensor] | None = None,
) -> dict[str, tuple[Consumer, ...]]:
    """Per group, the layers that read all of its units; groups that none reads are absent."""
    out: dict[str, tuple[Consumer, ...]] = {}
    for group in groups:
        found = []
        for number, (weight, moment) in seen.items():
            axis = groups.axes[input_axis(groups, number) or 0]
            kernel = weight.shape[1] // len(axis)
            columns = columns_of(axis, kernel, group.offset, group.units)
            if columns is not None:
                slope = (slopes or {}).get(number)
                found.append(Consumer(weight, moment, columns, curvatures.get(number), slope, kernel))
        if found:
            out[group.id] = tuple(found)
    return out


def columns_of(axis: Tensor, kernel: int, offset: int, units: int) -> Tensor | None:
    """``(units, m)``: the weight's columns of every unit; None when not every unit has as many."""
    unit, channel = [], []
    for owner in axis.unbind(1):
        inside = ((owner >= offset) & (owner < offset + units)).nonzero().flatten()
        unit.append(owner[inside] - offset)
        channel.append(inside)
    owners, channels = torch.cat(unit), torch.cat(channel)
    counts = torch.bincount(owners, minlength=units)
    if not len(owners) or len(counts.unique()) > 1:
        return None
    rows = channels[owners.argsort(stable=True)].reshape(units, -1)  # (units, channels of each)
    return (rows[:, :, None] * kernel + torch.arange(kernel)).flatten(1)
