"""Products of the Hessian with a vector, by differentiating the gradient once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, distributed
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunus.observe.average import Handles, Slopes, average, parameters_of, slopes
from prunus.observe.base import Seen, collectors, inputs_of, pieces
from prunus.observe.grad import grad

SEED = 0
PROBES = 16  # for every batch
Terms = dict[str, Tensor]  # by name of a weight


@collectors.register("hutchinson", labels=True)
def hutchinson(seen: Seen) -> dict[str, Tensor]:
    r"""Estimate of the Hessian's diagonal, $\mathbb{E}_v [v \odot (H v)]$ with entries of $v$ drawn from ±1.

    H is of the mean loss.  A batch is seen in up to 16 pieces, each with a probe of its own (more where there are fewer
    pieces), so that 16 probes cost little more than one.  The variance of a probe is
    $\sum_{j \ne i} H_{ij}^2$ of its samples: exact for a diagonal Hessian; may be negative where the curvature is not.
    """
    on_ranks = distributed.is_available() and distributed.is_initialized()
    draw = torch.Generator().manual_seed(SEED + (distributed.get_rank() if on_ranks else 0))

    probes = 1  # for the piece that is being looked at

    def split() -> Iterator[object]:
        nonlocal probes
        for batch in seen.loader:
            parts = list(pieces(batch, -(-inputs_of(batch).batch // PROBES)))
            probes = -(-PROBES // len(parts))
            yield from parts

    def diagonal(product: Callable[[Terms], Terms]) -> Terms:
        tensors = parameters_of(seen.groups)
        total = {name: torch.zeros_like(t) for name, t in tensors.items()}
        for _ in range(probes):
            probe = {n: torch.randint(0, 2, t.shape, generator=draw).mul(2).sub(1).to(t) for n, t in tensors.items()}
            for name, hv in product(probe).items():
                total[name].add_(probe[name] * hv, alpha=1 / probes)
        return total

    return _averaged(replace(seen, loader=split()), diagonal)


@collectors.register("hessian-gradient", labels=True)
def hessian_gradient(seen: Seen) -> dict[str, Tensor]:
    r"""Hessian of the mean loss times its gradient, $H g = \tfrac12 \nabla \|g\|^2$; two passes over the data."""
    mean = grad(seen)
    vector = {name: mean[name].to(t) for name, t in parameters_of(seen.groups).items() if name in mean}
    return _averaged(seen, lambda product: product(vector))


def _averaged(seen: Seen, terms: Callable[[Callable[[Terms], Terms]], Terms]) -> dict[str, Tensor]:
    """The mean over all samples of `terms`, a linear function of the Hessian, which it is given as a product."""
    parameters = parameters_of(seen.groups)

    def sums() -> Iterator[tuple[str, Tensor | None, int]]:
        for loss, size in seen.batches(lambda: sdpa_kernel(SDPBackend.MATH)):  # fused attention: no second derivative
            handles = {name: of for name, of in seen.handles(parameters).items() if of}
            first = slopes(loss * size, handles, create_graph=True)
            found = terms(lambda vector, first=first, handles=handles: _product(first, handles, vector))  # type: ignore[misc]
            yield from ((name, found[name], size) for name in handles)

    return average(parameters, sums())


def _product(first: Slopes, handles: Handles, vector: Terms) -> Terms:
    """The Hessian times `vector`: the gradient of the scalar product of the slopes `first` and `vector`."""
    curved = [(g, vector[name]) for name, g in first.items() if g is not None and g.requires_grad]
    zeros = {name: torch.zeros_like(of[0]) for name, of in handles.items()}
    if not curved:  # the loss is linear in every parameter
        return zeros
    left, right = zip(*curved, strict=True)
    found = slopes(left, handles, grad_outputs=right, retain_graph=True)
    return {name: zeros[name] if slope is None else slope for name, slope in found.items()}
