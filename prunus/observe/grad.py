"""The gradient of the loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from prunus.observe.average import average, parameters_of
from prunus.observe.base import Seen, collectors


@collectors.register("grad", labels=True)
def grad(seen: Seen) -> dict[str, Tensor]:
    r"""Mean gradient of the loss over all samples, $\frac{1}{N} \sum_n \partial L_n / \partial w$, per parameter.

    Batches count by their number of samples; on several processes the mean is over all of them.  A parameter that the
    loss does not reach has gradient 0.  Returns ``{parameter name: tensor of its shape}``.
    """
    parameters = parameters_of(seen.groups)
    tensors = list(parameters.values())

    def sums() -> Iterator[tuple[str, Tensor | None, int]]:
        for loss, size in seen.batches():
            slopes = torch.autograd.grad(loss * size, tensors, allow_unused=True)
            yield from ((name, slope, size) for name, slope in zip(parameters, slopes, strict=True))

    return average(parameters, sums())
