"""The flow through a network of absolute weights; looks at no data."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.core import InputError
from prunus.core.nested import tensors_in
from prunus.core.running import with_batch, with_tensors
from prunus.observe.average import parameters_of
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
    place = next(iter(weights.values())).device
    example = seen.groups.inputs if seen.groups.inputs.tensors else inputs_of(next(iter(seen.loader), ()))
    if not example.tensors:
        raise InputError("groups of weights alone know no inputs, and there is no batch: give data= one.")
    ones = with_batch(example, 1).map(
        lambda t: (torch.ones_like(t, dtype=torch.float64) if t.is_floating_point() else t).to(place)
    )
    output = with_tensors(seen.model, {**weights, **buffers}, ones)
    total = torch.stack([t.sum() for t in tensors_in(output) if t.is_floating_point()]).sum()
    names = {id(p): name for name, p in seen.model.named_parameters()}
    parameters = {name: weights[names[id(t)]] for name, t in parameters_of(seen.groups).items()}
    slopes = torch.autograd.grad(total, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, slopes, strict=True))
