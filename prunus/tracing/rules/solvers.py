"""Linear algebra on the last two dimensions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prunus.tracing.rules.base import bare, fix_all, passed, rule
from prunus.tracing.rules.elementwise import pointwise
from prunus.tracing.tracer import Dim, Dims, Tracer


@rule("linalg_inv_ex", "linalg_cholesky_ex", "_linalg_svd", "_linalg_eigh", "linalg_eig", "linalg_eigvals")
@rule("_linalg_eigvals", "linalg_qr", "_linalg_det", "_linalg_slogdet", "linalg_lu_factor_ex", "linalg_lu")
@rule("linalg_matrix_exp", "linalg_pinv", "cholesky", "cholesky_inverse", "geqrf", "_linalg_solve_ex")
@rule("linalg_solve_triangular", "cholesky_solve", "triangular_solve")
def matrices(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Every matrix (..., M, N) of a batch by itself: its rows and columns stay."""
    operands = [x for x in [*args, *kwargs.values()] if isinstance(x, Tensor) and x.dim()]
    for x in operands:
        fix_all(t, t.of(x)[-2:], "it is the row or column of a matrix that is decomposed")
    batches = [x.shape[:-2] for x in operands]
    if any(batch != batches[0] for batch in batches):  # a vector beside a matrix, or one matrix for a batch
        for x in operands:
            fix_all(t, t.of(x), "it meets something that cannot be cut")
        return bare(outs)
    lead = t.of(operands[0])[: len(batches[0])]
    for x in operands[1:]:
        for a, b in zip(lead, t.of(x)):
            t.unify(a, b)
    return [
        (passed(lead) if out.shape[: len(lead)] == batches[0] else [Dim() for _ in lead][: out.dim()])
        + [Dim() for _ in out.shape[len(lead) :]]
        for out in outs
    ]


@rule("linalg_cross")
def cross(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Products of vectors of three, which stay; the other dimensions are broadcast."""
    which = kwargs.get("dim", -1)
    for x in args[:2]:
        t.fix(t.of(x)[which], "it holds the three parts of a vector")
    return pointwise(t, args, {}, outs)
