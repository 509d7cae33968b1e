"""Where a basis and its coefficients start from, given the filters that they are to make."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from prunus.core import Registry

Init = Callable[[Tensor, Generator], tuple[Tensor, Tensor]]
inits: Registry[Init] = Registry("initialisation of a basis")
"""``f(filters (n, m), generator) -> (basis (m, m), coefficients (n, m))``, filters = coefficients @ basis."""


@inits.register("standard", paper="Wimmer et al., Interspace Pruning, CVPR 2022")
def standard(filters: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """The standard basis: coefficients are the weights, to the bit."""
    return torch.eye(filters.shape[1], dtype=filters.dtype, device=filters.device), filters


@inits.register("orthonormal", paper="Wimmer et al., Interspace Pruning, CVPR 2022")
def orthonormal(filters: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    r"""A random orthonormal basis $B$, uniform over all of them, and $\lambda = U B^T$: the function stays."""
    m = filters.shape[1]
    q, r = torch.linalg.qr(torch.randn(m, m, dtype=torch.float64, generator=generator))
    basis = (q * r.diagonal().sign()).to(filters)  # with r's diagonal positive q is uniform (Mezzadri 2007)
    return basis, filters @ basis.mT


@inits.register("svd")
def svd(filters: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    r"""The right singular vectors of the filters, $U = P \Sigma V^T$, by falling singular value, and $\lambda = U V$.

    Made for trained networks: the function stays, and the first coefficients hold most of every filter.
    """
    _, vectors = torch.linalg.eigh(filters.mT @ filters)  # of (m, m): far cheaper than the filters' own
    basis = vectors.mT.flip(0).contiguous()
    return basis, filters @ basis.mT
