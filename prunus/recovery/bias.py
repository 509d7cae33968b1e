r"""What a cut takes from a layer on average goes into its bias, :math:`b' = b + W_R \, \bar x_R`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import Groups, Plan
from prunus.core.checks import check_arguments, instance
from prunus.core.undo import all_or_nothing, keep_values
from prunus.observe.layers import Weights, input_axis, output_axis, sample_rows
from prunus.recovery.behind import mean_after
from prunus.recovery.moments import shares
from prunus.recovery.repair import Repaired
from prunus.recovery.solvable import parameters_read
from prunus.recovery.targets import MEMORY, fitting, rows_of, run

AT_ONCE = 4096  # rows of a layer that are looked at together


@dataclass(frozen=True, eq=False)
class Lost:
    """What layers lose on average by a cut; see `lost`.

    Attributes:
        means: what the removed inputs gave, :math:`W_R \\bar x_R`, by name of the weight: ``(kept outputs,)``, float64.
        samples: how many were looked at.
        notes: whether fewer samples than given were looked at; () by default.
    """

    means: Mapping[str, Tensor]
    samples: int
    notes: tuple[str, ...] = ()


def lost(
    model: nn.Module,
    groups: Groups,
    batches: Iterable[Any],
    plan: Plan,
    *,
    limit: int | None = 1024,
    memory: int = MEMORY,
    seed: int = 0,
) -> Lost:
    r"""Run the network, before it is cut, on unlabelled data: what the inputs that go give to their layers on average.

    .. math:: W_R \, \bar x_R, \qquad \bar x_R = \sum_n a_n x_{n,R} \Big/ \sum_n a_n

    where :math:`a_n` is 1, and less for rows of giant outputs (see `prunus.recovery.moments.shares`).

    Args:
        groups: what `prunus.trace` returned of `model`.
        batches: ``x`` or ``(x, ...)``, of training data as in deployment (no augmentation).
        plan: what will be cut.
        limit: at most so many samples; None takes all.
        memory: bytes that the activations of all samples together may take; fewer samples are used otherwise.
        seed: for the rows of activations that are looked at, where there are over 20 an unknown.

    Raises: `InputError` when there is no batch, or one holds NaN or infinity, or forward goes another way on the data
    than it did when it was traced.

    Source: An et al., "FLAP", AAAI 2024, eq. 4; Ye et al., ICLR 2018.
    """
    check_arguments(locals())
    inputs, chosen, notes = fitting(model, groups, batches, plan, limit, memory)
    alive, weights = groups.alive(groups.mask(plan)), Weights(model)
    generator, means = torch.Generator().manual_seed(seed), dict[str, Tensor]()

    def after(number: int, args: Any, kwargs: Any, out: Any) -> None:
        op, axis = groups.operators[number], input_axis(groups, number)
        if number not in chosen.rows or axis is None or bool(alive[axis].all()):
            return
        layer = weights.layer(op, args)
        if layer is None:
            return
        index = sample_rows(layer, chosen.rows[number], generator).to(layer.x.device)
        counts = shares(rows_of(layer, out, index))
        kept = alive[axis].nonzero()[:, 0].to(layer.x.device)
        gone = replace(layer, x=layer.x.index_fill(1, kept, 0))
        parts = zip(index.split(AT_ONCE), counts.split(AT_ONCE))
        total = sum((gone.inputs(rows).double() * a[:, None]).sum(1) for rows, a in parts)
        mean = torch.as_tensor(total) / counts.sum()  # (groups, fan)
        weight = layer.weight.reshape(layer.groups, -1, layer.fan).double()
        given, outputs = (weight @ mean[..., None]).reshape(-1), output_axis(groups, number)
        means[layer.name] = given if outputs is None else given[alive[outputs].to(given.device)]

    run(model, groups, inputs, lambda *_: None, after, chosen.last)
    notes = tuple(note for note in notes if note not in chosen.notes)  # those are of layers that lose nothing
    return Lost(means, inputs.batch, notes)


def compensate_(model: nn.Module, groups: Groups, lost: Lost) -> Repaired:
    r"""Add to biases what their layers lost, in place: :math:`b' = b + W_R \, \bar x_R`.

    Exact where what was removed is constant and the layers before it give what they gave.  A layer without a bias
    before a batch norm gives it to the running mean; one with neither stays as it is (`prunus.surgery.give_biases_`
    adds one), and so does one whose bias forward computes from parameters.

    Args:
        model: the cut network.
        groups: what `prunus.trace` returns of the cut network.
        lost: what `prunus.recovery.lost` returned of the original.

    Source: An et al., "FLAP", AAAI 2024, eq. 4; Ye et al., ICLR 2018.
    """
    check_arguments(locals(), lost=instance("what prunus.recovery.lost returns", Lost))
    operators, solved = groups.operators, 0
    with all_or_nothing(model), torch.no_grad():
        for number, read in enumerate(parameters_read(model, operators)):
            for name in lost.means.keys() & read.keys():
                bias, given = read.get(f"{name.removesuffix('weight')}bias"), lost.means[name]
                mean = mean_after(model, operators, number) if len(read) == 1 else None
                keep_values(bias, mean)
                if bias is not None and bias.shape == given.shape:
                    bias.add_(given)
                elif bias is None and mean is not None and mean.shape == given.shape:
                    mean.sub_(given)
                else:
                    continue
                solved += 1
    return Repaired(solved, lost.samples, lost.notes)
