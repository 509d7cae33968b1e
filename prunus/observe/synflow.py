"""The flow through a network of absolute weights; looks at no data."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor

from prunus.core import InputError
from prunus.core.callbacks import each, forward
from prunus.core.nested import tensors_in
from prunus.core.running import with_batch
from prunus.observe.average import parameters_of, slopes
from prunus.observe.base import Seen, collectors, inputs_of
from prunus.observe.layers import follow_of
from prunus.observe.unsigned import Record, Unsigned


@collectors.register("flow", data=False)
def flow(seen: Seen) -> dict[str, Tensor]:
    r"""Gradient $\partial R / \partial |w|$ of $R = \mathbf{1}^T f_{|w|}(\mathbf{1})$; looks at no data.

    All weights absolute, all inputs one, and activations the identity, so that none of them saturates; in float64, as
    the numbers grow with the depth.  The inputs have the traced shape; whole numbers (token ids) stay as traced.
    Running means are taken as 0, so that nothing is subtracted; see `prunus.observe.unsigned` for products of
    activations and for norms by statistics of their own.
    """
    parameters = dict(seen.model.named_parameters())
    if not parameters:
        raise InputError(f"{type(seen.model).__name__} has no parameters: there is nothing that could flow.")
    like = next((p for p in parameters.values() if p.is_floating_point()), next(iter(parameters.values())))
    batch = None if seen.groups.inputs.tensors else next(each(seen.loader), None)
    example = seen.groups.inputs if batch is None else inputs_of(batch)
    if not example.tensors:
        raise InputError("groups of weights alone know no inputs, and there is no batch: give data= one.")
    kind = None if batch is None else like.dtype
    ones = with_batch(example, 1).map(
        lambda t: (torch.ones_like(t, dtype=kind) if t.is_floating_point() else t).to(like.device)
    )
    follow, record = follow_of(seen.model, seen.groups), Record(ones.tensors)
    with torch.no_grad(), follow or nullcontext(), record:
        output = forward(seen.model, ones, "inputs of ones")
    of = {id(p): p for p in parameters.values()}
    met = {} if follow is None else follow.handles
    handles = {n: [of[id(t)]] if id(t) in of else met.get(n, []) for n, t in parameters_of(seen.groups).items()}
    unsigned = Unsigned(record.calls, [*of.values(), *(t for some in handles.values() for t in some)])
    outputs = [unsigned.value(t) for t in tensors_in(output) if t.is_floating_point()]
    total = torch.stack([t.sum() for t in outputs]).sum()
    found = slopes(
        total, {n: [unsigned.value(t) for t in some] for n, some in handles.items() if some}, materialize_grads=True
    )
    return {name: slope for name, slope in found.items() if slope is not None}
