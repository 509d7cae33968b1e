"""What classification asks of every layer: heads inside the network, and their loss as a function of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prunus.core import InputError
from prunus.core.replay import Replay
from prunus.observe.base import Seen, collectors
from prunus.observe.layers import INPUTS, Layer
from prunus.observe.moments import Consumer, consumers, second_moments

HEADS = 3  # inside the network, evenly placed; the network's own loss is one more


@dataclass(frozen=True, eq=False)
class Head:
    r"""A linear classifier on what a layer gives, :math:`\theta^T \mathrm{AvgPool}(\mathrm{ReLU}(\mathrm{BN}(O)))`.

    Attributes:
        number: of the operator whose output it reads.
        mean, scale: ``(channels,)``, the batch norm.
        weight, bias: ``(classes, channels)`` and ``(classes,)``.
    """

    number: int
    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        """``(samples, positions, channels)`` -> ``(samples, classes)``."""
        return pooled(rows, self.mean, self.scale) @ self.weight.mT + self.bias


@collectors.register("discriminated-moments", of="group", labels=True, one_call=True)
def discriminated_moments(seen: Seen) -> dict[str, tuple[Consumer, ...]]:
    r"""As ``moments``, not centred, with slope and curvature of the next head's cross-entropy for every layer.

    Heads stand after up to three layers, evenly placed, each fitted to the labels by logistic regression on the network
    as it is; layers behind the last one look at the network's own loss.  With the mean loss :math:`L_S` of the first
    head that a layer reaches: ``slope`` is :math:`\partial L_S / \partial W`, ``curvature`` is
    :math:`\frac1N \sum_n \sum_m g_{nm} g_{nm}^T` with :math:`g_{nm}` the slope of a sample's loss by an output row.
    Source: Zhuang et al., "Discrimination-aware Channel Pruning", NeurIPS 2018, section 3.

    Raises: `InputError` unless batches are ``(x, y)`` with at least two classes.
    """
    moments = {i: (w, h) for i, (w, _, h) in second_moments(seen).items()}
    slopes, curvatures = _of_losses(seen, heads(seen), sorted(moments))
    return consumers(seen.groups, moments, curvatures, slopes)


def heads(seen: Seen) -> tuple[Head, ...]:
    """The heads of a network, fitted to the labels of all samples."""
    alone = {s.name for group in seen.groups for s in group.with_role("depthwise")}  # these mix no channels
    operators = ((i, op) for i, op in enumerate(seen.groups.operators) if alone.isdisjoint(op.weights))
    layers = [i for i, op in operators if op.name in INPUTS and op.macs is not None][:-1]
    many = min(HEADS, len(layers) // 2)
    places = [layers[len(layers) * p // (many + 1)] for p in range(1, many + 1)]
    norms = _norms(seen, places)
    features: dict[int, list[Tensor]] = {place: [] for place in places}
    labels = []
    with torch.no_grad():
        for held, batch, size, _ in _outputs(seen, places):
            labels.append(labels_of(batch, size))
            for place, (layer, out) in held.items():
                features[place].append(pooled(rows_of(layer, out, size), *norms[place]))
    return tuple(Head(p, *norms[p], *fit(torch.cat(features[p]), torch.cat(labels))) for p in places if features[p])


def fit(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logistic regression (scikit-learn, unit L2 penalty): ``(classes, channels)`` and ``(classes,)``, double.

    Classes that no label names have weight 0 and a bias of minus infinity.

    Raises: `InputError` for fewer than two classes.
    """
    from sklearn.linear_model import LogisticRegression

    if len(labels.unique()) < 2:
        raise InputError(
            f"heads tell classes apart, and the data hold only the class {labels.unique().tolist()}: give batches of "
            "at least two."
        )
    model = LogisticRegression(tol=1e-8, max_iter=1000).fit(features.cpu().numpy(), labels.cpu().numpy())
    weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    if len(weight) == 1:  # two classes: one row tells the second from the first
        weight, bias = torch.cat([torch.zeros_like(weight), weight]), torch.cat([torch.zeros_like(bias), bias])
    classes = torch.from_numpy(model.classes_).long()
    many = int(classes.max()) + 1
    whole = torch.zeros(many, weight.shape[1], dtype=weight.dtype).index_copy_(0, classes, weight)
    biases = torch.full((many,), -torch.inf, dtype=weight.dtype).index_copy_(0, classes, bias)
    return whole.to(features.device), biases.to(features.device)


def pooled(rows: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """``(samples, positions, channels)`` -> ``(samples, channels)`` in float64: normed, ReLU, mean over positions."""
    return ((rows.double() - mean) * scale).relu().mean(1)


def rows_of(layer: Layer, out: Tensor, size: int) -> Tensor:
    """The output of a layer as ``(samples, positions, channels)``."""
    return layer.by_sample(out, size)


def labels_of(batch: Any, size: int) -> Tensor:
    """The class numbers ``(samples,)`` of a batch ``(x, y)``."""
    y = batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None
    if not isinstance(y, Tensor) or y.shape != (size,) or y.is_floating_point():
        raise InputError(
            "heads inside the network learn classes: give batches (x, y) with y one class number a sample, (samples,) "
            f"integers. Given: a batch of type {type(batch).__name__}. Without labels: 'thinet', 'lasso', 'obs'."
        )
    return y.long()


def _norms(seen: Seen, places: list[int]) -> dict[int, tuple[Tensor, Tensor]]:
    """Mean and inverse deviation of every channel that the layers at `places` give, over all samples and positions."""
    sums: dict[int, list[Any]] = {}
    with torch.no_grad():
        for held, _, size, _ in _outputs(seen, places):
            for place, (layer, out) in held.items():
                rows = rows_of(layer, out, size).double().flatten(0, 1)
                n, total, squares = sums.get(place, [0, 0, 0])
                sums[place] = [n + len(rows), total + rows.sum(0), squares + rows.square().sum(0)]
    means = {place: (total / n, squares / n) for place, (n, total, squares) in sums.items()}
    return {place: (m, (s - m.square()).clamp(min=0).add(1e-5).rsqrt()) for place, (m, s) in means.items()}


Held = dict[int, tuple[Layer, Tensor]]


def _outputs(seen: Seen, places: list[int]) -> Iterator[tuple[Held, Any, int, Any]]:
    """Per batch, what the layers at `places` give, the batch, its number of samples, and the network's output."""
    wanted, held = set(places), Held()

    def watch() -> Replay:
        held.clear()
        weights = seen.weights()

        def after(number: int, args: Any, kwargs: Any, out: Any) -> None:
            layer = weights.layer(seen.groups.operators[number], args)
            if layer is not None and number in wanted:
                held[number] = layer, out

        return seen.replay(after=after)

    for out, batch, size in seen.forwards(watch):
        yield held, batch, size, out


def _of_losses(seen: Seen, heads: tuple[Head, ...], numbers: list[int]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Slope by the weight and curvature by the output of the layers at `numbers`, each of its own head's loss."""
    slopes: dict[int, Tensor] = {}
    curvatures: dict[int, Tensor] = {}
    samples = 0
    for held, batch, size, out in _outputs(seen, [*numbers, *(head.number for head in heads)]):
        y, todo = labels_of(batch, size), list(numbers)
        logits = ((h.number, h(rows_of(*held[h.number], size))) for h in heads)
        losses = [(place, F.cross_entropy(scores, y, reduction="sum")) for place, scores in logits]
        losses.append((max(numbers), seen.value(out, batch, size).mean() * size))
        for place, loss in losses:
            of = [number for number in todo if number <= place]
            outs = [held[number][1] for number in of]
            slopes_of = torch.autograd.grad(loss, outs, allow_unused=True, retain_graph=True) if outs else ()
            for number, slope in zip(of, slopes_of):
                if slope is None:
                    continue  # the next head may see it
                todo.remove(number)
                layer = held[number][0]
                rows = rows_of(layer, slope, size).double().flatten(0, 1)
                slopes[number] = slopes.get(number, 0) + by_weight(layer, slope).double()
                curvatures[number] = curvatures.get(number, 0) + rows.mT @ rows
        samples += size
    return {n: s / samples for n, s in slopes.items()}, {n: c / samples for n, c in curvatures.items()}


def by_weight(layer: Layer, slope: Tensor) -> Tensor:
    """The slope by the weight of a layer, ``(out, fan)``, from that by its output."""
    x, weight = layer.x.detach(), layer.weight.detach()
    if not layer.stride:
        return slope.mT @ x
    many = len(layer.stride)
    found: Tensor = torch.ops.aten.convolution_backward(
        slope, x, weight, None, layer.stride, layer.padding, layer.dilation, False, [0] * many, layer.groups,
        [False, True, False],
    )[1]  # fmt: skip
    return found.flatten(1)
