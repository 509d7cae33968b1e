r"""Closed-form repair of a network that was cut, layer after layer, by least squares.

Every layer is solved again, in the order of execution, so that from the inputs that it has in the cut network it gives
what it gave in the original; where it is the last part of a residual sum, so that the sum does:

.. math:: \min_{W, b} \sum_n a_n \lVert t_n - W \hat x_n - b \rVert^2 \Big/ \sum_n a_n
    + \lambda \lVert W - W_0 \rVert^2

where :math:`a_n` bounds what a row can weigh (see `prunus.recovery.moments.shares`), and :math:`\lambda` is that
multiple of the inputs' mean variance with which a fifth of the rows, held out, is met best (see
`prunus.recovery.moments.chosen_ridge`).

A layer without a bias before a batch norm gives its :math:`b` to the running mean.  Statistics of batch norms stay as
they were otherwise: they belong to the outputs that are rebuilt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import Groups, InputError, Operator, Plan
from prunus.core.callbacks import own
from prunus.core.checks import a_function, check_arguments, instance, optional
from prunus.core.undo import all_or_nothing, keep_values
from prunus.observe.layers import Layer, Weights
from prunus.observe.moments import LARGEST
from prunus.recovery.behind import affine, mean_after, residual
from prunus.recovery.moments import Moments, chosen_ridge
from prunus.recovery.solvable import ENOUGH, parameters_read
from prunus.recovery.targets import Targets, rows_of, run

AT_ONCE = 4096  # rows of a layer that are counted together
PIECES, HELD = 20, 5  # of a layer's rows; every `HELD`th piece is held out to choose the ridge


@dataclass(frozen=True)
class Repaired:
    """What `repair_` did: layers solved again, on how many samples, and what is to be known of it.

    Attributes:
        layers: how many were solved.
        samples: how many were looked at.
        notes: layers that stayed, and systems with few rows; () by default.
    """

    layers: int
    samples: int
    notes: tuple[str, ...] = ()


def repair_(
    model: nn.Module,
    groups: Groups,
    plan: Plan,
    wanted: Targets,
    *,
    skip: Callable[[str], bool] | None = None,
) -> Repaired:
    r"""Solve every layer of the cut network again, so that it gives what the original gave.

    One forward of all calibration samples: a layer is solved when it is reached, so that those behind it see what it
    gives now, and make up for what is left of its error.  Convolutions of any kernel, stride, padding, dilation and
    groups (depthwise as well), and linear layers; a weight that several calls share, or that is tied to another, and
    the head of a vocabulary are left alone, and so is one that forward computes from parameters (a note says which).

    Args:
        model: the cut network, changed in place.
        groups: what `prunus.trace` returns of the cut network.
        plan: what was kept.
        wanted: what `targets` returned of the original.
        skip: told the name of a layer, says whether it stays as it is.

    Raises: `InputError` when forward goes another way than it did when it was traced.

    Source: He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, section 3.2-3.3, with
    the asymmetric and multi-branch forms; the prior :math:`W_0` is the cut weight.
    """
    check_arguments(
        locals(), wanted=instance("what prunus.recovery.targets returns", Targets), skip=optional(a_function)
    )
    parameters = dict(model.named_parameters())
    if wrong := [name for name, p in parameters.items() if name in plan.tensors and plan.tensors[name].left != p.shape]:
        raise InputError(
            f"'{wrong[0]}' is not as the plan leaves it: repair_ takes the network after shrink_, and its plan."
        )
    ops, weights, behind = groups.operators, Weights(model), Behind(model, groups.operators, wanted, plan)
    names = {name for name, _ in wanted.values}
    last = max((i for i, read in enumerate(parameters_read(model, ops)) if names.intersection(read)), default=None)
    shared = {name for name, call in wanted.rows if call}
    solved, thin, wide = 0, list[str](), list[str]()
    made = {tensor for op in ops if op.computed for tensor in op.writes}  # of parameters
    memory = {p.untyped_storage().data_ptr() for p in parameters.values()}
    computed = dict[str, None]()

    def before(number: int, args: Any, kwargs: Any) -> None:
        nonlocal solved
        layer = weights.layer(ops[number], args)
        bias = None if layer is None else layer.bias
        own_bias = bias is None or bias.untyped_storage().data_ptr() in memory
        if not own_bias or (layer is None and ops[number].macs is not None and made.intersection(ops[number].reads)):
            computed[ops[number].module or ops[number].name] = None
            return
        if layer is None or layer.key not in wanted.values or layer.name in shared:
            return
        if skip is not None and own(skip, "skip=")(layer.name):
            return
        mean = None if layer.bias is not None else mean_after(model, ops, number)
        takes = layer.bias is not None or mean is not None
        if layer.fan > LARGEST:
            wide.append(layer.name)
            return
        counted = behind.moments(layer, number)
        if counted is None:
            return
        prior = layer.weight.reshape(layer.groups, -1, layer.fan).double()
        thin.extend([layer.name] if len(wanted.rows[layer.key]) < ENOUGH * layer.fan else [])
        moments, held = counted
        ridge = chosen_ridge(moments, held, prior, intercept=takes)
        moments.join(held)
        weight, bias = moments.solve(prior, ridge=ridge, intercept=takes)
        keep_values(parameters[layer.name])
        layer.weight.copy_(weight.reshape(layer.weight.shape))
        parameters[layer.name].grad = None
        keep_values(layer.bias, mean)
        if layer.bias is not None:
            layer.bias.copy_(bias)
        elif mean is not None:
            mean.sub_(bias)
        solved += 1

    with all_or_nothing(model):
        run(model, groups, wanted.inputs, before, behind.after, last if wanted.stops else None)
        notes = wanted.notes
        if wide:
            notes += (
                f"{len(wide)} layers (first: '{wide[0]}') have over {LARGEST} inputs, and stay as they were cut.",
            )
        if computed:
            notes += (
                f"{len(computed)} layers (first: '{next(iter(computed))}') read weights or biases that forward "
                "computes from parameters, and stay as they were cut.",
            )
        if thin:
            notes += (
                f"{len(thin)} layers (first: '{thin[0]}') have fewer than {ENOUGH} rows for every unknown in their "
                "least squares, so that they stay close to what they were: give more calibration data.",
            )
        return Repaired(solved, wanted.inputs.batch, notes)


class Behind:
    """What layers of the cut network have to give for the sums that they are part of; `after` tells it of a forward."""

    def __init__(self, model: nn.Module, operators: Sequence[Operator], wanted: Targets, plan: Plan) -> None:
        self.model, self.ops, self.wanted = model, operators, wanted
        self.alive = wanted.groups.alive(wanted.groups.mask(plan))
        self.sums = {i: s for i, op in enumerate(operators) if op.macs is not None and (s := residual(operators, i))}
        self.until: dict[int, int] = {}  # the other part of sums -> the number of the last of them
        for s in self.sums.values():
            self.until[s.other] = max(s.number, self.until.get(s.other, 0))
        self.live: dict[int, Tensor] = {}  # the other parts of sums to come, as they are now

    def after(self, number: int, args: Any, kwargs: Any, out: Any) -> None:
        """Keep the tensors that layers to come are added to, until they are."""
        for tensor in self.ops[number].writes:
            if tensor in self.until and isinstance(out, Tensor):
                self.live[tensor] = out
        self.live = {tensor: value for tensor, value in self.live.items() if self.until[tensor] > number}

    def moments(self, layer: Layer, number: int) -> tuple[Moments, Moments] | None:
        """The sums over a layer's rows and what they shall give: of four fifths, and of those that are held out to
        choose the ridge.  None where nothing can rebuild what is wanted."""
        joined, summed = self.sums.get(number), layer.key in self.wanted.summed
        if summed and (joined is None or joined.other not in self.live):
            return None
        norm = affine(self.model, self.ops[joined.norm]) if summed and joined and joined.norm is not None else None
        if norm is not None and bool((norm[0] == 0).any()):  # what is multiplied by zero cannot rebuild anything
            return None
        axis, values, index = self.wanted.axes[layer.key], self.wanted.values[layer.key], self.wanted.rows[layer.key]
        kept = torch.arange(values.shape[1]) if axis is None else self.alive[axis].nonzero()[:, 0]
        if len(kept) != layer.weight.shape[0]:
            return None
        fit, held = Moments(), Moments()
        every = torch.arange(len(index), device=index.device)
        out = held_out(len(index)).to(index.device)
        of = [(fit, every[~out]), (held, every[out])]
        for moments, part in ((m, part) for m, rows in of if len(rows) for part in rows.split(AT_ONCE)):
            target = values[part][:, kept.to(values.device)].double()
            if summed and joined is not None:
                target = target - rows_of(layer, self.live[joined.other], index[part]).double()
            if norm is not None:
                target = (target - norm[1]) / norm[0]
            moments.add(layer.inputs(index[part]), target, self.wanted.shares[layer.key][part])
        return fit, held


def held_out(rows: int) -> Tensor:
    """Which of so many rows in the order of the data are held out: every fifth of 20 pieces, ``(rows,)``.

    Rows of one sample lie together, so that pieces tell samples apart.
    """
    return torch.arange(rows) * PIECES // max(rows, 1) % HELD == HELD - 1
