"""What the kept weights of a layer become when others are gone: exactly, or in one sweep over the columns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.core import Registry
from prunus.criteria.obc import removal_errors

BLOCK = 128  # columns whose mask is chosen at once
MEMORY = 512 << 20  # bytes of the linear systems that are solved at once


@dataclass(frozen=True, eq=False)
class System:
    r"""The rows of a layer to be solved: $\min_V \mathrm{tr}\,(V - W) H (V - W)^T$ with zeros where `keep` is False.

    Attributes:
        weight: ``(rows, fan)``, what is best with all weights there; float64.
        moment: ``(fan, fan)``, $H$, damped.
        keep: ``(rows, fan)``, True = keep.
        order: ``(fan,)``, the order of the columns that has the parts of an N:M pattern side by side.
        pattern: N and M, of each of whose parts as many stay as of every other; or None.
        even: whether every row keeps as many.
    """

    weight: Tensor
    moment: Tensor
    keep: Tensor
    order: Tensor
    pattern: tuple[int, int] | None = None
    even: bool = False


Solution = tuple[Tensor, Tensor]  # the weights and the mask, (rows, fan) each
repairs: Registry[Callable[[System], Solution]] = Registry("repair of masked layers")


@repairs.register("exact", paper="Hassibi & Stork, Optimal Brain Surgeon, NIPS 1992; Frantar et al., OBC, NeurIPS 2022")
def exact(system: System) -> Solution:
    r"""Least squares on the kept weights of every row, $V_{rK} = (W H)_{rK} (H_{KK})^{-1}$.

    The same as Optimal Brain Surgeon's updates for the weights that are gone, in whatever order they went.

    >>> h = torch.tensor([[1, .9, 0], [.9, 1, 0], [0, 0, .5]], dtype=torch.float64)
    >>> keep = torch.tensor([[False, True, True]])
    >>> exact(System(torch.ones(1, 3).double(), h, keep, torch.arange(3)))[0]
    tensor([[0.0000, 1.9000, 1.0000]], dtype=torch.float64)
    """
    weight, h, keep = system.weight, system.moment, system.keep
    target = weight @ h  # (rows, fan)
    widest = int(keep.sum(1).max()) if keep.numel() else 0
    out = torch.zeros_like(weight)
    most = max(MEMORY // (8 * max(widest, 1) ** 2), 1)
    for rows, kept, wanted in zip(torch.arange(len(weight)).split(most), keep.split(most), target.split(most)):
        there, columns = kept.to(torch.uint8).sort(dim=1, descending=True, stable=True)
        width = int(kept.sum(1).max())
        there, columns = there[:, :width].bool(), columns[:, :width]  # the kept columns of every row, then others
        blocks = h[columns[:, :, None], columns[:, None, :]] * (there[:, :, None] & there[:, None, :])
        blocks = blocks + torch.diag_embed((~there).to(h.dtype))  # what is only there to fill up stays zero
        solved = torch.linalg.solve(blocks, wanted.gather(1, columns) * there)
        out[rows.to(out.device)] = torch.zeros_like(wanted).scatter(1, columns, solved)
    return out, keep


@repairs.register("fast", paper="Frantar & Alistarh, SparseGPT, ICML 2023")
def fast(system: System) -> Solution:
    """The update of SparseGPT for the mask as it is: every column's error goes to the columns after it."""
    return _sweep(system, choose=False)


@repairs.register("sparsegpt", paper="Frantar & Alistarh, SparseGPT, ICML 2023")
def sparsegpt(system: System) -> Solution:
    r"""SparseGPT: of every 128 columns the least $w^2 / R_{ii}^2$ go, and the columns after them make up for the error.

    The plan says how many weights a layer keeps; which, is decided here (of N:M patterns part by part).
    """
    return _sweep(system, choose=True)


@repairs.register("obc", paper="Frantar et al., Optimal Brain Compression, NeurIPS 2022")
def obc(system: System) -> Solution:
    """Optimal Brain Compression: the least errors of greedy removal go, over all rows of the layer, updated exactly.

    The plan says how many weights a layer keeps; which, is decided here by what goes into the layer now.
    """
    errors = removal_errors(system.weight, system.moment, ridge=0)[:, system.order]
    removed = (~system.keep)[:, system.order]
    gone = lowest(errors, removed.sum(), system)
    keep = torch.empty_like(gone)
    keep[:, system.order] = ~gone
    return exact(System(system.weight, system.moment, keep, system.order))


def _sweep(system: System, choose: bool) -> Solution:
    r"""Column by column: $e = (w_i - v_i) / R_{ii}$, $W_{:,i:} \leftarrow W_{:,i:} - e R_{i,i:}$, $H^{-1} = R^T R$."""
    order = system.order
    w, keep = system.weight[:, order].clone(), system.keep[:, order].clone()
    inverse = torch.linalg.inv(system.moment[order][:, order])
    r = torch.linalg.cholesky((inverse + inverse.mT) / 2, upper=True)
    rows, fan = w.shape
    block = system.pattern[1] if system.pattern else BLOCK
    total = int((~keep).sum())
    gone = 0
    for start in range(0, fan, block):
        end = min(start + block, fan)
        here = slice(start, end)
        if choose:
            asked = (total * end) // fan - gone  # in every block the same part
            removed = lowest(w[:, here].square() / r.diagonal()[here].square(), torch.tensor(asked), system)
            keep[:, here] = ~removed
            gone += int(removed.sum())
        errors = torch.zeros(rows, end - start, dtype=w.dtype, device=w.device)
        for i in range(start, end):
            errors[:, i - start] = w[:, i].masked_fill(keep[:, i], 0) / r[i, i]
            w[:, i:end] -= errors[:, i - start, None] * r[i, i:end]
        w[:, end:] -= errors @ r[here, end:]
    out, mask = torch.empty_like(w), torch.empty_like(keep)
    out[:, order], mask[:, order] = w * keep, keep
    return out, mask


def lowest(scores: Tensor, count: Tensor, system: System) -> Tensor:
    """Which `count` of the scores ``(rows, columns)`` are the lowest: of all, of every row, or of every part of N:M.

    >>> s = System(torch.ones(1, 4), torch.eye(4), torch.ones(1, 4).bool(), torch.arange(4), pattern=(2, 4))
    >>> lowest(torch.tensor([[4., 1., 3., 2.]]), torch.tensor(2), s)
    tensor([[False,  True, False,  True]])
    """
    width = system.pattern[1] if system.pattern else scores.shape[1] if system.even else scores.numel()
    parts = scores.reshape(-1, width)
    each = round(int(count) / len(parts))
    removed = torch.zeros_like(parts, dtype=torch.bool)
    removed.scatter_(1, parts.argsort(dim=1, stable=True)[:, :each], True)
    return removed.reshape(scores.shape)
