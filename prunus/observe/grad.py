"""The gradient of the loss."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from prunus.observe.average import average, parameters_of, slopes
from prunus.observe.base import Seen, collectors


@collectors.register("grad", labels=True)
def grad(seen: Seen) -> dict[str, Tensor]:
    r"""Mean gradient of the loss over all samples, $\frac{1}{N} \sum_n \partial L_n / \partial w$, per parameter.

    Batches count by their number of samples; on several processes the mean is over all of them.  A parameter that the
    loss does not reach has gradient 0; of a weight that forward computes from parameters it is the gradient by that
    weight.  Returns ``{parameter name: tensor of its shape}``.
    """
    parameters = parameters_of(seen.groups)

    def sums() -> Iterator[tuple[str, Tensor | None, int]]:
        for loss, size in seen.batches():
            handles = seen.handles(parameters)
            yield from ((name, slope, size) for name, slope in slopes(loss * size, handles).items() if handles[name])

    return average(parameters, sums())
