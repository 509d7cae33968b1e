"""The gradient of the loss."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from prunus.observe.base import Seen, collectors


@collectors.register("grad", labels=True)
def grad(seen: Seen) -> dict[str, Tensor]:
    r"""Mean gradient of the loss over all samples, $\frac{1}{N} \sum_n \partial L_n / \partial w$, per parameter.

    Batches count by their number of samples; on several processes the mean is over all of them.  A parameter that the
    loss does not reach has gradient 0.  Returns ``{parameter name: tensor of its shape}``.
    """
    parameters = {
        s.name: s.tensor for g in seen.groups for s in g.slices if s.tensor.is_leaf and s.tensor.requires_grad
    }
    tensors = list(parameters.values())
    total = [torch.zeros_like(t) for t in tensors]
    samples = torch.zeros(1, device=tensors[0].device if tensors else None)
    for loss, size in seen.batches():
        slopes = torch.autograd.grad(loss * size, tensors, allow_unused=True)
        for sum_, slope in zip(total, slopes, strict=True):
            if slope is not None:
                sum_.add_(slope)
        samples += size
    if distributed.is_available() and distributed.is_initialized():
        for tensor in (*total, samples):
            distributed.all_reduce(tensor)
    return {name: sum_ / samples for name, sum_ in zip(parameters, total, strict=True)}
