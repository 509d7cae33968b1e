"""The gradient of every single sample.

All samples of a batch at once, from what the graph of the loss has saved: the slope of a layer's output times its
input, sample by sample.  Two samples are looked at alone first; where that gives something else (a layer that puts
samples in another order, a parameter that no rule here knows), every sample of the data goes through the network alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F

from prunus.core import InputError
from prunus.core.nested import tensors_in
from prunus.observe.average import Handles, parameters_of, slopes
from prunus.observe.base import Seen, inputs_of, pieces

MEMORY = 2**23  # bytes that the gradients of some samples by one parameter, and the patches, take: near the processor
AGREE = 1e-3  # of the largest entry: single against double work in float32

Losses = Callable[[Any, Any], Iterable[Tensor]]  # (output, batch) -> losses, each (samples,) or a mean over them
Rows = Iterator[tuple[str, Tensor]]  # the name of a parameter, and its gradients (some samples, *shape)


class Use(NamedTuple):
    """A node of the graph that takes a parameter, as which operand, and whether transposed."""

    node: Any
    position: int
    turned: bool


Rule = Callable[[Use, Tensor, int, slice], Tensor]  # slope of the output, samples in all, which of them -> (some, ...)


class _NoRule(Exception):
    """A parameter is used in a way that no rule knows."""


def sample_gradients(seen: Seen, losses: Losses) -> Iterator[tuple[int, Rows, int]]:
    """Per batch and loss: the number of the loss, the gradients of all samples by parameter, and the samples.

    A parameter may come several times, some samples after the other; one that the loss does not reach does not come.
    """
    names = list(parameters_of(seen.groups))
    at_once: bool | None = None  # not known yet
    for out, batch, size in seen.forwards():
        handles = seen.handles(names)
        if at_once is None and size > 1:
            at_once = _agree(seen, names, batch)
        if at_once and size > 1:
            for number, loss in enumerate(losses(out, batch)):
                total = loss.sum() if loss.dim() else loss * size
                yield number, _rows(total, handles, size), size
            continue
        for one in pieces(batch, 1):
            for number, loss in enumerate(losses(seen.run(inputs_of(one)), one)):
                found = _alone(loss.mean(), seen.handles(names))
                yield number, ((name, slope[None]) for name, slope in found.items()), 1


def class_scores(output: Any, kind: str) -> Tensor:
    """The logits ``(samples, classes)`` of an output; raises `InputError` for an output that is something else."""
    logits = output.get("logits") if isinstance(output, dict) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
        raise InputError(
            f"the statistic '{kind}' reads class scores (samples, classes); the output is {shape}. 'fisher' and "
            "'hutchinson' take any loss=."
        )
    return logits


def _alone(value: Tensor, handles: Handles) -> dict[str, Tensor]:
    found = slopes(value, handles, retain_graph=True) if value.requires_grad else {}
    return {name: slope for name, slope in found.items() if slope is not None}


def _agree(seen: Seen, names: list[str], batch: Any) -> bool:
    """Whether two samples alone, and both together, have the gradients that the rules say."""

    def value(output: Any, count: int) -> Tensor:  # any function of the outputs that treats no two of them alike
        parts = [
            (t.flatten(1).double() * torch.arange(1, t[0].numel() + 1, device=t.device).double().cos()).sum()
            for t in tensors_in(output)
            if t.requires_grad and t.dim() and t.shape[0] == count
        ]
        return torch.stack(parts).sum() if parts else torch.zeros(())

    pair = next(pieces(batch, 2))
    ends = [_alone(value(seen.run(inputs_of(one)), 1), seen.handles(names)) for one in pieces(pair, 1)]
    whole = value(seen.run(inputs_of(pair)), 2)
    if not whole.requires_grad:
        return False
    handles = seen.handles(names)
    summed = _alone(whole, handles)
    try:
        found: dict[str, list[Tensor]] = {}
        for name, rows in _rows(whole, handles, 2):
            part = found.setdefault(name, [rows[0], rows[-1], torch.zeros_like(rows[0])])
            part[1], part[2] = rows[-1], part[2] + rows.sum(0)
    except _NoRule:
        return False
    if set(found) != set(summed):
        return False
    return all(
        _close(mine, theirs.get(name, torch.zeros_like(mine)))
        for name, three in found.items()
        for mine, theirs in zip(three, (*ends, summed), strict=True)
    )


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= AGREE * b.abs().max().clamp(min=1e-6))


def _rows(value: Tensor, handles: Handles, size: int) -> Rows:
    """The gradients of all samples by each parameter, from the graph of their summed loss."""
    uses = _uses(value, handles)
    nodes = list(dict.fromkeys(use.node for of in uses.values() for use in of))
    if not nodes:
        return
    edges = [GradientEdge(node, 0) for node in nodes]
    at = dict(zip(nodes, torch.autograd.grad(value, edges, retain_graph=True), strict=True))
    for name, of in uses.items():
        tensor = handles[name][0]
        cost = max(_numbers(tensor, use.node, at[use.node]) for use in of) * tensor.element_size()
        step = max(1, MEMORY // max(cost, 1))
        for start in range(0, size, step):
            part = slice(start, min(start + step, size))
            with torch.no_grad():
                rows = [RULES[use.node.name()](use, at[use.node], size, part) for use in of]
                found = sum(rows[1:], rows[0]).reshape(-1, *tensor.shape)
            yield name, found


def _uses(value: Tensor, handles: Handles) -> dict[str, list[Use]]:
    """Where the graph takes each parameter; `_NoRule` is raised where no rule knows how."""
    names = {tuple(get_gradient_edge(t))[:2]: name for name, of in handles.items() for t in of if t.requires_grad}
    uses: dict[str, list[Use]] = {}
    waiting: list[Any] = [value.grad_fn]
    met = set(waiting)
    while waiting:
        node = waiting.pop()
        for position, edge in enumerate(node.next_functions):
            before = edge[0]
            if before is None:
                continue
            turned = before.name() == "TBackward0"
            name = names.get(before.next_functions[0] if turned else edge)
            if name is not None:
                use = Use(node, position, turned)
                _check_known(use)
                uses.setdefault(name, []).append(use)
            elif before not in met:
                met.add(before)
                waiting.append(before)
    return uses


def _check_known(use: Use) -> None:
    kind = use.node.name()
    odd = kind == "ConvolutionBackward0" and (use.node._saved_transposed or len(use.node._saved_stride) > 2)
    product = (kind, use.position) in (("AddmmBackward0", 2), ("MmBackward0", 1))
    if use.position not in OPERANDS.get(kind, ()) or odd or (use.turned and not product):
        raise _NoRule(kind)


def _numbers(tensor: Tensor, node: Any, slope: Tensor) -> int:
    """How many numbers the gradient of one sample takes, and the patches that it is made of."""
    groups = node._saved_groups if node.name() == "ConvolutionBackward0" else 1
    return tensor.numel() + tensor[0].numel() * slope.shape[2:].numel() * groups


def _convolution(use: Use, slope: Tensor, size: int, part: slice) -> Tensor:
    """Weight or bias of a convolution over one or two dimensions."""
    node, slope = use.node, slope[part].flatten(2)  # (n, out, positions)
    if use.position == 2:
        return slope.sum(2)
    x, kernel, stride = node._saved_input[part], node._saved_weight.shape[2:], node._saved_stride
    dilation, padding, of = node._saved_dilation, node._saved_padding, node._saved_groups
    if x.dim() == 3:
        x, kernel, stride, dilation, padding = x[:, :, None], (1, *kernel), (1, *stride), (1, *dilation), (0, *padding)
    patches = F.unfold(x, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))
    patches = patches.unflatten(1, (of, -1))  # (n, groups, fan, positions)
    return slope.unflatten(1, (of, -1)) @ patches.mT  # (n, groups, out / groups, fan)


def _linear(use: Use, slope: Tensor, size: int, part: slice) -> Tensor:
    """Weight or bias of a linear layer, whose rows must be the samples one after the other."""
    if len(slope) % size:
        raise _NoRule("rows that are no samples")
    slope = slope.unflatten(0, (size, -1))[part]  # (n, rows, out)
    if use.position == 0:
        return slope.sum(1)
    x = use.node._saved_mat1 if use.node.name() == "AddmmBackward0" else use.node._saved_self
    x = x.unflatten(0, (size, -1))[part]
    return slope.mT @ x if use.turned else x.mT @ slope


def _batch_norm(use: Use, slope: Tensor, size: int, part: slice) -> Tensor:
    """Scale or shift of a batch norm in evaluation mode."""
    node, slope = use.node, slope[part].reshape(part.stop - part.start, slope.shape[1], -1)
    if use.position == 2:
        return slope.sum(2)
    x = node._saved_input[part].reshape_as(slope)
    normal = (x - node._saved_running_mean[:, None]) * (node._saved_running_var[:, None] + node._saved_eps).rsqrt()
    return (slope * normal).sum(2)


def _layer_norm(use: Use, slope: Tensor, size: int, part: slice) -> Tensor:
    """Scale or shift of a layer norm."""
    node = use.node
    terms = slope * (node._saved_input - node._saved_result1) * node._saved_result2 if use.position == 1 else slope
    if len(terms) != size:
        raise _NoRule("rows that are no samples")
    return terms[part].reshape(part.stop - part.start, -1, *node._saved_normalized_shape).sum(1)


OPERANDS = {  # which operands of a node are parameters
    "ConvolutionBackward0": (1, 2),
    "AddmmBackward0": (0, 2),
    "MmBackward0": (1,),
    "NativeBatchNormBackward0": (1, 2),
    "NativeLayerNormBackward0": (1, 2),
}
RULES: dict[str, Rule] = {
    "ConvolutionBackward0": _convolution,
    "AddmmBackward0": _linear,
    "MmBackward0": _linear,
    "NativeBatchNormBackward0": _batch_norm,
    "NativeLayerNormBackward0": _layer_norm,
}
