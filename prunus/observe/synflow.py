"""The flow through a network of absolute weights; looks at no data."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from prunus.core import InputError
from prunus.core.callbacks import each, forward
from prunus.core.effective import Follow, leaves_of
from prunus.core.nested import tensors_in
from prunus.core.running import with_batch, with_tensors
from prunus.observe.average import parameters_of, slopes
from prunus.observe.base import Seen, collectors, inputs_of


@collectors.register("flow", data=False)
def flow(seen: Seen) -> dict[str, Tensor]:
    r"""Gradient $\partial R / \partial |w|$ of $R = \mathbf{1}^T f_{|w|}(\mathbf{1})$; looks at no data.

    All weights absolute, all inputs one; in float64, as the numbers grow with the depth.  The inputs have the traced
    shape; whole numbers (token ids) stay as traced.  Running means are taken as 0, so that nothing is subtracted.
    """
    weights = {name: p.detach() for name, p in seen.model.named_parameters()}
    weights = {n: p.double().abs().requires_grad_() if p.is_floating_point() else p for n, p in weights.items()}
    buffers = {n: b.double() for n, b in seen.model.named_buffers() if b.is_floating_point()}
    buffers = {n: torch.zeros_like(b) if n.endswith("running_mean") else b for n, b in buffers.items()}
    if not weights:
        raise InputError(f"{type(seen.model).__name__} has no parameters: there is nothing that could flow.")
    place = next(iter(weights.values())).device
    batch = None if seen.groups.inputs.tensors else next(each(seen.loader), None)
    example = seen.groups.inputs if batch is None else inputs_of(batch)
    if not example.tensors:
        raise InputError("groups of weights alone know no inputs, and there is no batch: give data= one.")
    tensors = {**weights, **buffers}
    ones = with_batch(example, 1).map(
        lambda t: (torch.ones_like(t, dtype=torch.float64) if t.is_floating_point() else t).to(place)
    )
    parameters = parameters_of(seen.groups)
    follow = _absolute(seen, tensors)
    with follow or nullcontext():
        output = forward(seen.model, ones, "inputs of ones", call=lambda: with_tensors(seen.model, tensors, ones))
    total = torch.stack([t.sum() for t in tensors_in(output) if t.is_floating_point()]).sum()
    names = {id(p): name for name, p in seen.model.named_parameters()}
    met = {} if follow is None else follow.handles
    handles = {n: [weights[names[id(t)]]] if id(t) in names else met.get(n, []) for n, t in parameters.items()}
    found = slopes(total, {name: of for name, of in handles.items() if of}, materialize_grads=True)
    return {name: slope for name, slope in found.items() if slope is not None}


def _absolute(seen: Seen, absolute: dict[str, Tensor]) -> Follow | None:
    """Puts the absolute values of weights that forward computes from parameters in their place."""
    effective = seen.groups.effective
    if effective is None:
        return None
    expressions = effective.expressions
    roots = {expressions.root(number) for number in effective.numbers.values()}
    plain = {name: t.double() if t.is_floating_point() else t for name, t in leaves_of(seen.model).items()}
    values = expressions.values(roots, {**effective.leaves, **plain})
    instead = {n: value.abs() for n, value in values.items() if not isinstance(expressions.made[n], str)}
    return Follow(effective, {**leaves_of(seen.model), **absolute}, instead)
