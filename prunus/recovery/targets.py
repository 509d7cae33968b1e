"""What every layer of a network gives before the cut: what its repair rebuilds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import Groups, Inputs, Plan
from prunus.core.callbacks import forward
from prunus.core.checks import check_arguments, instance, optional
from prunus.core.replay import After, Before, Replay
from prunus.core.running import undisturbed
from prunus.observe.layers import Layer, Weights, output_axis, sample_rows
from prunus.recovery.behind import residual
from prunus.recovery.calibration import bytes_of_a_sample, first, gather, operators_of, times_the_example
from prunus.recovery.moments import shares
from prunus.recovery.solvable import Solvable, solvable

MEMORY = 2 << 30  # bytes

Key = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Targets:
    """What every layer of the original network gave on the calibration data, at sampled rows; see `targets`.

    Attributes:
        groups: of the network before the cut.
        inputs: all samples that were looked at.
        rows: numbers of the rows that are kept, ``(n,)``, by layer and call.
        values: what the layer gave there, ``(n, out)``.
        shares: by how much each row counts, ``(n,)``.
        axes: the axis of its output channels; None where they are no units.
        summed: layers whose values are those of the residual sum that they end in.
        stops: whether forward ends with the last of these layers; False by default.
        notes: what was left out, and why; () by default.
    """

    groups: Groups
    inputs: Inputs
    rows: Mapping[Key, Tensor]
    values: Mapping[Key, Tensor]
    shares: Mapping[Key, Tensor]
    axes: Mapping[Key, int | None]
    summed: frozenset[Key]
    stops: bool = False
    notes: tuple[str, ...] = ()


class Enough(BaseException):
    """Ends a forward of which the rest is not needed; no error, so that no code that handles errors takes it."""


def targets(
    model: nn.Module,
    groups: Groups,
    batches: Iterable[Any],
    *,
    plan: Plan | None = None,
    limit: int | None = 1024,
    memory: int = MEMORY,
    seed: int = 0,
) -> Targets:
    """Run the network, before it is cut, on unlabelled data, and keep what `repair_` rebuilds.

    Weights that several operators share and the head of a vocabulary stay as they are.  What goes on behind the last
    layer that is solved (the scores of all words) is not computed.

    Args:
        groups: what `prunus.trace` returned of `model`.
        batches: ``x`` or ``(x, ...)``, of training data as in deployment (no augmentation).
        plan: what will be cut; where memory is short, layers that lose inputs come first.
        limit: at most so many samples; None takes all.
        memory: bytes that the activations of all samples together may take, and half as many those that are kept of
            all layers; fewer samples, rows or layers are used otherwise (a note says so).
        seed: for the rows of activations that are kept where there are more than enough.

    Raises: `InputError` when there is no batch, or one holds NaN or infinity, or forward goes another way on the data
    than it did when it was traced.
    """
    check_arguments(locals(), plan=optional(instance("a Plan", Plan)))
    inputs, chosen, notes = fitting(model, groups, batches, plan, limit, memory)
    generator, weights = torch.Generator().manual_seed(seed), Weights(model)
    rows: dict[Key, Tensor] = {}
    values: dict[Key, Tensor] = {}
    axes: dict[Key, int | None] = {}
    open_: dict[int, Layer] = {}  # of layers whose output, or whose sum, comes with the operator of that number
    summed: set[Key] = set()

    def before(number: int, args: Any, kwargs: Any) -> None:
        layer = weights.layer(groups.operators[number], args)
        if layer is not None and number in chosen.rows:
            rows[layer.key] = sample_rows(layer, chosen.rows[number], generator)
            axes[layer.key] = output_axis(groups, number)
            joined = residual(groups.operators, number)
            summed.update({layer.key} if joined else ())
            open_[joined.number if joined else number] = layer

    def after(number: int, args: Any, kwargs: Any, out: Any) -> None:
        if number in open_:
            layer = open_.pop(number)
            values[layer.key] = rows_of(layer, out, rows[layer.key])

    run(model, groups, inputs, before, after, chosen.last)
    shared = {key: shares(value) for key, value in values.items()}
    return Targets(groups, inputs, rows, values, shared, axes, frozenset(summed), chosen.last is not None, notes)


def fitting(
    model: nn.Module, groups: Groups, batches: Iterable[Any], plan: Plan | None, limit: int | None, memory: int
) -> tuple[Inputs, Solvable, tuple[str, ...]]:
    """As many samples as fit in memory, the layers that are solved again on them, and what is to be known of both."""
    inputs = gather(batches, limit, len(groups.inputs.calls))
    ran = operators_of(model, groups, inputs)
    asked, times = inputs.batch, times_the_example(model, groups, inputs)
    chosen = solvable(model, groups, times, memory // 2, plan, ran)
    bytes_ = int(bytes_of_a_sample(groups, chosen.last) * groups.inputs.batch * times)  # of all samples
    if bytes_ <= memory:
        return inputs, chosen, chosen.notes
    inputs = first(inputs, max(asked * memory // bytes_, 1))
    chosen = solvable(model, groups, times * inputs.batch / asked, memory // 2, plan, ran)
    note = f"repair looked at {inputs.batch} of {asked} samples: more do not fit in memory={memory / 2**30:g} GB"
    return inputs, chosen, (note, *chosen.notes)


def run(model: nn.Module, groups: Groups, inputs: Inputs, before: Before, after: After, last: int | None) -> None:
    """A forward of calibration data beside the operators of its trace, up to the operator `last` where one is given."""

    def watched(number: int, args: Any, kwargs: Any, out: Any) -> None:
        after(number, args, kwargs, out)
        if number == last:
            raise Enough

    ran = operators_of(model, groups, inputs)
    with undisturbed(model), Replay(groups.operators, ran, before=before, after=watched), suppress(Enough):
        forward(model, inputs.map(torch.clone), "the calibration data")


def rows_of(layer: Layer, tensor: Tensor, index: Tensor) -> Tensor:
    """Rows of a tensor that has the shape of the layer's output, or a view of it."""
    return layer.outputs(tensor if layer.stride else tensor.reshape(-1, tensor.shape[-1]), index).clone()
