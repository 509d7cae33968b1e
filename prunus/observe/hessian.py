"""Products of the Hessian with a vector, by differentiating the gradient once more."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, distributed
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunus.observe.average import average, parameters_of
from prunus.observe.base import Seen, collectors, inputs_of, pieces
from prunus.observe.grad import grad

SEED = 0
PROBES = 16  # for every batch
Terms = list[Tensor]


@collectors.register("hutchinson", labels=True)
def hutchinson(seen: Seen) -> dict[str, Tensor]:
    r"""Estimate of the Hessian's diagonal, $\mathbb{E}_v [v \odot (H v)]$ with entries of $v$ drawn from ±1.

    H is of the mean loss.  A batch is seen in up to 16 pieces, each with a probe of its own (more where there are fewer
    pieces), so that 16 probes cost little more than one.  The variance of a probe is
    $\sum_{j \ne i} H_{ij}^2$ of its samples: exact for a diagonal Hessian; may be negative where the curvature is not.
    """
    tensors = list(parameters_of(seen.groups).values())
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
        total = [torch.zeros_like(t) for t in tensors]
        for _ in range(probes):
            probe = [torch.randint(0, 2, t.shape, generator=draw).mul(2).sub(1).to(t) for t in tensors]
            for sum_, v, hv in zip(total, probe, product(probe), strict=True):
                sum_.add_(v * hv, alpha=1 / probes)
        return total

    return _averaged(replace(seen, loader=split()), diagonal)


@collectors.register("hessian-gradient", labels=True)
def hessian_gradient(seen: Seen) -> dict[str, Tensor]:
    r"""Hessian of the mean loss times its gradient, $H g = \tfrac12 \nabla \|g\|^2$; two passes over the data."""
    mean = grad(seen)
    vector = [mean[name].to(t) for name, t in parameters_of(seen.groups).items()]
    return _averaged(seen, lambda product: product(vector))


def _averaged(seen: Seen, terms: Callable[[Callable[[Terms], Terms]], Terms]) -> dict[str, Tensor]:
    """The mean over all samples of `terms`, a linear function of the Hessian, which it is given as a product."""
    parameters = parameters_of(seen.groups)
    tensors = list(parameters.values())

    def sums() -> Iterator[tuple[str, Tensor | None, int]]:
        for loss, size in seen.batches(lambda: sdpa_kernel(SDPBackend.MATH)):  # fused attention: no second derivative
            slopes = torch.autograd.grad(loss * size, tensors, create_graph=True, allow_unused=True)
            found = terms(lambda vector, slopes=slopes: _product(slopes, tensors, vector))  # type: ignore[misc]
            yield from ((name, term, size) for name, term in zip(parameters, found, strict=True))

    return average(parameters, sums())


def _product(slopes: Sequence[Tensor | None], tensors: Sequence[Tensor], vector: Sequence[Tensor]) -> Terms:
    """The Hessian times `vector`: the gradient of the scalar product of `slopes` and `vector`."""
    curved = [(g, v) for g, v in zip(slopes, vector, strict=True) if g is not None and g.requires_grad]
    if not curved:  # the loss is linear in every parameter
        return [torch.zeros_like(t) for t in tensors]
    left, right = zip(*curved, strict=True)
    return list(torch.autograd.grad(left, tensors, right, retain_graph=True, allow_unused=True, materialize_grads=True))
