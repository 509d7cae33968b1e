r"""Closed-form repair of a network that was cut, layer after layer: least squares, or the bias alone.

Every layer is solved again, in the order of execution, so that from the inputs that it has in the cut network it gives
what it gave in the original; where it is the last part of a residual sum, so that the sum does:

.. math:: \min_{W, b} \tfrac1N \sum_n \lVert t_n - W \hat x_n - b \rVert^2 + \lambda \lVert W - W_0 \rVert^2

With weights as they are, the bias alone takes up the mean of what was removed, :math:`b = \bar t - W \bar x`.

A layer without a bias before a batch norm gives its :math:`b` to the running mean.  Statistics of batch norms stay as
they were otherwise: they belong to the outputs that are rebuilt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import Groups, InputError, Inputs, Plan
from prunus.core.callbacks import forward, own
from prunus.core.checks import a_function, check_arguments, instance, optional
from prunus.core.replay import Replay
from prunus.core.running import undisturbed
from prunus.core.undo import all_or_nothing, keep_values
from prunus.observe.layers import Layer, Weights, output_axis, sample_rows
from prunus.observe.moments import LARGEST
from prunus.recovery.behind import Sum, affine, mean_after, residual
from prunus.recovery.calibration import bytes_of_a_sample, first, gather, operators_of

PER_UNKNOWN = 20  # rows of a least-squares system for every unknown, where there are so many
LEAST_ROWS = 8192
ENOUGH = 5  # rows for every unknown; with fewer the ridge grows
RIDGE = 1e-3  # of the mean variance of the inputs
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
        axes: the axis of its output channels; None where they are no units.
        summed: layers whose values are those of the residual sum that they end in.
        notes: whether fewer samples than given were looked at; () by default.
    """

    groups: Groups
    inputs: Inputs
    rows: Mapping[Key, Tensor]
    values: Mapping[Key, Tensor]
    axes: Mapping[Key, int | None]
    summed: frozenset[Key]
    notes: tuple[str, ...] = ()


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


def targets(
    model: nn.Module,
    groups: Groups,
    batches: Iterable[Any],
    *,
    limit: int | None = 1024,
    memory: int = MEMORY,
    seed: int = 0,
) -> Targets:
    """Run the network, before it is cut, on unlabelled data, and keep what `repair_` rebuilds.

    Args:
        groups: what `prunus.trace` returned of `model`.
        batches: ``x`` or ``(x, ...)``, of training data as in deployment (no augmentation).
        limit: at most so many samples; None takes all.
        memory: bytes that the activations of all samples together may take; fewer samples are used otherwise (a note
            says so).
        seed: for the rows of activations that are kept where there are more than enough.

    Raises: `InputError` when there is no batch, or one holds NaN or infinity, or forward goes another way on the data
    than it did when it was traced.
    """
    check_arguments(locals())
    most = max(memory // max(bytes_of_a_sample(groups), 1), 1)
    inputs = gather(batches, limit, len(groups.inputs.calls))
    notes: tuple[str, ...] = ()
    if inputs.batch > most:
        notes = (f"repair looked at {most} of {inputs.batch} samples: more do not fit in memory={memory / 2**30:g} GB",)
        inputs = first(inputs, most)
    generator, weights = torch.Generator().manual_seed(seed), Weights(model)
    rows: dict[Key, Tensor] = {}
    values: dict[Key, Tensor] = {}
    axes: dict[Key, int | None] = {}
    open_: dict[int, Layer] = {}  # of layers whose output, or whose sum, comes with the operator of that number
    summed: set[Key] = set()

    def before(number: int, args: Any, kwargs: Any) -> None:
        layer = weights.layer(groups.operators[number], args)
        if layer is not None:
            enough = max(PER_UNKNOWN * (layer.fan + 1), LEAST_ROWS)
            rows[layer.key] = sample_rows(layer, min(enough, max(memory // (16 * layer.fan), 1)), generator)
            axes[layer.key] = output_axis(groups, number)
            joined = residual(groups.operators, number)
            summed.update({layer.key} if joined else ())
            open_[joined.number if joined else number] = layer

    def after(number: int, args: Any, kwargs: Any, out: Any) -> None:
        if number in open_:
            layer = open_.pop(number)
            values[layer.key] = _rows(layer, out, rows[layer.key])

    ran = operators_of(model, groups, inputs)
    with undisturbed(model), Replay(groups.operators, ran, before=before, after=after):
        forward(model, inputs.map(torch.clone), "the calibration data")
    return Targets(groups, inputs, rows, values, axes, frozenset(summed), notes)


def repair_(
    model: nn.Module,
    groups: Groups,
    plan: Plan,
    wanted: Targets,
    *,
    bias_only: bool = False,
    skip: Callable[[str], bool] | None = None,
) -> Repaired:
    r"""Solve every layer of the cut network again, so that it gives what the original gave.

    Solves for weights and bias, or for the bias alone: with layers before it unchanged,
    :math:`b \mathrel{+}= W_{:,\text{removed}} \, \bar x_\text{removed}`, exact where what was removed is constant; a
    layer with neither a bias nor a batch norm behind it stays as it is (`prunus.surgery.give_biases_` adds one).

    One forward of all calibration samples: a layer is solved when it is reached, so that those behind it see what it
    gives now, and make up for what is left of its error.  Convolutions of any kernel, stride, padding, dilation and
    groups (depthwise as well), and linear layers; a weight that several calls share is left alone, and so is one that
    forward computes from parameters (a note says which).

    Args:
        model: the cut network, changed in place.
        groups: what `prunus.trace` returns of the cut network.
        plan: what was kept.
        wanted: what `targets` returned of the original.
        bias_only: keep the weights.
        skip: told the name of a layer, says whether it stays as it is.

    Raises: `InputError` when forward goes another way than it did when it was traced.

    Source: He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, section 3.2-3.3, with
    the asymmetric and multi-branch forms; the prior :math:`W_0` is the cut weight.
    The bias alone: An et al., "FLAP", AAAI 2024, eq. 4, and Ye et al., ICLR 2018.
    """
    check_arguments(
        locals(), wanted=instance("what prunus.recovery.targets returns", Targets), skip=optional(a_function)
    )
    alive = wanted.groups.alive(wanted.groups.mask(plan))
    if wrong := [
        name for name, p in model.named_parameters() if name in plan.tensors and plan.tensors[name].left != p.shape
    ]:
        raise InputError(
            f"'{wrong[0]}' is not as the plan leaves it: repair_ takes the network after shrink_, and its plan."
        )
    ops, weights, parameters = groups.operators, Weights(model), dict(model.named_parameters())
    sums = {i: s for i, op in enumerate(ops) if op.macs is not None and (s := residual(ops, i))}
    others = {s.other for s in sums.values()}
    live: dict[int, Tensor] = {}
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
        target = _target(layer, sums.get(number))
        if target is None or target.shape[1] != layer.weight.shape[0]:
            return
        index = wanted.rows[layer.key]
        mean = None if layer.bias is not None else mean_after(model, ops, number)
        takes = layer.bias is not None or mean is not None
        if bias_only and not takes:
            return
        if layer.fan > LARGEST and not bias_only:
            wide.append(layer.name)
            return
        x, prior = layer.inputs(index).double(), layer.weight.reshape(layer.groups, -1, layer.fan).double()
        if bias_only:
            bias = target.mean(0) - (x.mean(1, keepdim=True) @ prior.mT).reshape(-1)
        else:
            few = ENOUGH * layer.fan / len(index)
            thin.extend([layer.name] if few > 1 else [])
            weight, bias = least_squares(x, target, prior, ridge=RIDGE * max(1.0, few) ** 2, intercept=takes)
            keep_values(parameters[layer.name])
            layer.weight.copy_(weight.reshape(layer.weight.shape))
            parameters[layer.name].grad = None
        keep_values(layer.bias, mean)
        if layer.bias is not None:
            layer.bias.copy_(bias)
        elif mean is not None:
            mean.sub_(bias)
        solved += 1

    def _target(layer: Layer, joined: Sum | None) -> Tensor | None:
        """``(n, out)`` in float64, for the kept outputs."""
        axis, target = wanted.axes[layer.key], wanted.values[layer.key].double()
        target = target if axis is None else target[:, alive[axis].to(target.device)]
        if layer.key not in wanted.summed:
            return target
        if joined is None or joined.other not in live:
            return None
        target = target - _rows(layer, live[joined.other], wanted.rows[layer.key]).double()
        if joined.norm is None:
            return target
        scale, shift = affine(model, ops[joined.norm])
        if bool((scale == 0).any()):  # what is multiplied by zero cannot rebuild anything
            return None
        return (target - shift) / scale

    def after(number: int, args: Any, kwargs: Any, out: Any) -> None:
        for tensor in ops[number].writes:
            if tensor in others and isinstance(out, Tensor):
                live[tensor] = out

    with all_or_nothing(model):
        ran = operators_of(model, groups, wanted.inputs)
        with undisturbed(model), Replay(ops, ran, before=before, after=after):
            wanted.inputs.map(torch.clone)(model)
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


def least_squares(
    x: Tensor, target: Tensor, prior: Tensor, *, ridge: float = RIDGE, intercept: bool = True
) -> tuple[Tensor, Tensor]:
    r"""The weights that best give `target` from `x`, and their intercept, close to a `prior`.

    .. math:: W = (T^T X + \lambda W_0)(X^T X + \lambda I)^{-1}, \qquad b = \bar t - W \bar x

    with `x` and `target` centred where there is an intercept, and :math:`\lambda` = `ridge` times the mean square of x.

    Args:
        x: ``(groups, n, fan)``; `target`: ``(n, groups * out)``; `prior`: ``(groups, out, fan)``.

    Returns: ``(groups, out, fan)`` and ``(groups * out,)``.

    >>> x = torch.tensor([[[1.], [2.], [4.]]], dtype=torch.float64)
    >>> w, b = least_squares(x, 3 * x[0] + 1, torch.zeros(1, 1, 1, dtype=torch.float64), ridge=0)
    >>> round(w.item(), 6), round(b.item(), 6)
    (3.0, 1.0)
    """
    groups, n, fan = x.shape
    means = (x.mean(1, keepdim=True), target.mean(0)) if intercept else (x.new_zeros(()), target.new_zeros(()))
    x_mean, t_mean = means
    t = (target - t_mean).reshape(n, groups, -1).movedim(1, 0)  # (groups, n, out)
    xc = x - x_mean
    gram = xc.mT @ xc / n  # (groups, fan, fan)
    cross = xc.mT @ t / n  # (groups, fan, out)
    damp = ridge * gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30)[:, None, None]
    eye = torch.eye(fan, dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve(gram + damp * eye, cross + damp * prior.mT).mT
    bias = (t_mean - (x_mean @ weight.mT).reshape(-1)) if intercept else target.new_zeros(target.shape[1])
    return weight, bias


def _rows(layer: Layer, tensor: Tensor, index: Tensor) -> Tensor:
    """Rows of a tensor that has the shape of the layer's output, or a view of it."""
    return layer.outputs(tensor if layer.stride else tensor.reshape(-1, tensor.shape[-1]), index).clone()
