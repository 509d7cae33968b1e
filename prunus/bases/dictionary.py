r"""The best basis for sparse coefficients of given filters, by alternating least squares."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from prunus.bases.inits import Init
from prunus.core import InputError
from prunus.core.checks import check_arguments
from prunus.core.words import a_matrix

CHUNK = 1 << 14  # filters solved at once, each with a matrix of its own


def sparse_dictionary(filters: Tensor, density: float, rounds: int = 10) -> tuple[Tensor, Tensor, list[float]]:
    r"""A basis and sparse coefficients near $\inf_{F,\ \lVert R \rVert_0 \le s} \lVert U - R F \rVert_F$ (Theorem 1).

    Starts at $F = I$ and the $s$ largest entries of $U$, which is the best that a mask of the weights can do, and then
    solves by turns for the basis, $F = R^+ U$, and for the kept coefficients of every filter, each exactly: the error
    never grows.  Which coefficients are kept stays as it starts, which the theorem allows for.

    Args:
        filters: $U$ ``(n, m)``, a flattened filter a row; density: $s / (n m)$; rounds: of two solutions each.

    Returns: the basis ``(m, m)`` with vectors of norm 1, the coefficients ``(n, m)``, and the error at the start and
    after every solution.  Raises: `InputError` for a density outside (0, 1].

    Source: Wimmer et al., "Interspace Pruning", CVPR 2022, Theorem 1.

    >>> u = torch.randn(200, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> basis, coefficients, errors = sparse_dictionary(u, 0.1)
    >>> int(coefficients.count_nonzero()), errors[-1] < errors[1] < errors[0]
    (180, True)
    """
    check_arguments(locals(), filters=a_matrix)
    if not 0 < density <= 1:
        raise InputError(f"density={density!r}: expected a number above 0 and at most 1.")
    u = filters.double()
    n, m = u.shape
    kept = torch.zeros(n * m, dtype=torch.bool, device=u.device)
    count = min(max(int(density * n * m + 1e-9), 1), n * m)
    kept[u.reshape(-1).abs().argsort(descending=True, stable=True)[:count]] = True
    keep = kept.reshape(n, m)
    basis, r = torch.eye(m, dtype=u.dtype, device=u.device), u * keep
    errors = [float((u - r).norm())]
    patterns, which = keep.unique(dim=0, return_inverse=True)
    for _ in range(rounds):
        used = r.any(0)  # a vector that no filter keeps stays as it is
        given = r[:, used]
        basis[used] = torch.linalg.pinv(given.mT @ given, hermitian=True) @ (given.mT @ u)
        errors.append(float((u - r @ basis).norm()))
        inverse = torch.linalg.pinv(basis * patterns[:, :, None])  # (patterns, m, m): r = u inverse for kept rows alone
        pairs = zip(u.split(CHUNK), which.split(CHUNK))
        r = torch.cat([torch.bmm(rows[:, None], inverse[of])[:, 0] for rows, of in pairs]) * keep
        errors.append(float((u - r @ basis).norm()))
    length = basis.norm(dim=1).clamp(min=1e-30)
    return (basis / length[:, None]).to(filters), (r * length).to(filters), errors


def dictionary(density: float, rounds: int = 10) -> Init:
    """An initialisation for `prunus.interspace_`: the coefficients of `sparse_dictionary`, zeros and all.

    The function changes: it is the nearest that was found with so few coefficients.

    Args: density: the share of coefficients that are not zero; rounds: as of `sparse_dictionary`.

    >>> import prunus
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3))
    >>> prunus.interspace_(net, init=dictionary(density=0.25)).error < 1
    True
    """
    check_arguments(locals())

    def start(filters: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        return sparse_dictionary(filters, density, rounds)[:2]

    return start
