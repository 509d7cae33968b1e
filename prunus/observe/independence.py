"""How much of a layer's feature maps only one unit has: what their nuclear norm loses without it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from prunus.core import Groups, Operator
from prunus.core.replay import Replay
from prunus.observe.activations import maps
from prunus.observe.base import Seen, collectors
from prunus.observe.layers import Weights, readers
from prunus.observe.moments import columns_of

ENTRIES = 1 << 24  # of matrices that are decomposed at once


@collectors.register("independence", of="group")
def independence(seen: Seen) -> dict[str, Tensor]:
    r"""Channel independence of every unit, ``(samples, units)``: :math:`\lVert A \rVert_* - \lVert A_{(u=0)} \rVert_*`.

    :math:`A` is ``(units, positions)``, the maps of one image where a layer reads them or a pooling takes them, the
    mean over those places; vectors after a global pooling count only where there is nothing wider.
    Source: Sui et al., "CHIP", NeurIPS 2021, eq. 3.
    """
    groups, read = seen.groups, readers(seen.groups)
    batches: list[dict[str, list[Tensor]]] = []

    def watch() -> Replay:
        weights, found = seen.weights(), dict[str, list[Tensor]]()
        batches.append(found)

        def before(number: int, args: Any, kwargs: Any) -> None:
            for of, map in _read(seen, read, number, weights, args):  # map: (samples, channels, positions)
                for id, rows in _members(groups, of):
                    found.setdefault(id, []).append(map[:, rows].flatten(2).detach())  # (samples, units, m * positions)

        return seen.replay(before=before)

    kept: list[dict[str, Tensor]] = []
    with torch.no_grad():
        for _ in seen.forwards(watch):
            kept.append({id: _over_places(places) for id, places in batches.pop().items()})
    ids = dict.fromkeys(id for batch in kept for id in batch)
    return {id: torch.cat([batch[id] for batch in kept if id in batch]) for id in ids}


def lost_nuclear_norm(maps: Tensor) -> Tensor:
    r"""What nuclear norms lose without each row of the matrix: ``(n, units, positions)`` -> ``(n, units)``.

    By the eigenvalues of :math:`B^T B - b_u b_u^T`, as small as the shorter side; in float64.

    >>> lost_nuclear_norm(torch.diag(torch.tensor([3., 1.]))[None])
    tensor([[3., 1.]], dtype=torch.float64)
    """
    rows = maps.double()
    if rows.shape[2] > rows.shape[1]:  # in a basis of what the rows span: norms stay
        rows = torch.linalg.qr(rows.mT, mode="r").R.mT  # (n, units, units)
    gram = rows.mT @ rows  # (n, r, r)
    whole = _nuclear(gram)
    lost = [
        whole[i] - torch.cat([_nuclear(gram[i] - b[:, :, None] * b[:, None]) for b in _chunks(rows[i])])
        for i in range(len(rows))
    ]
    return torch.where((maps != 0).any(2), torch.stack(lost).clamp(min=0), 0.0)


def _nuclear(gram: Tensor) -> Tensor:
    """The sum of the singular values of matrices given by their Gram matrices; rounding counts as zero."""
    values = torch.linalg.eigvalsh(gram)
    least = torch.finfo(gram.dtype).eps * gram.shape[-1] * values.amax(-1, keepdim=True)
    return torch.where(values > least, values, 0.0).sqrt().sum(-1)


def _chunks(rows: Tensor) -> tuple[Tensor, ...]:
    return rows.split(max(ENTRIES // max(rows.shape[1] ** 2, 1), 1))


def _over_places(places: list[Tensor]) -> Tensor:
    """``(samples, units)``, the mean over the places that have more than one position, if there are such."""
    wide = [map for map in places if map.shape[2] > 1] or places
    return torch.stack([lost_nuclear_norm(map) for map in wide]).mean(0).cpu()


def _read(
    seen: Seen, read: dict[int, Tensor], number: int, weights: Weights, args: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """Units and maps ``(samples, channels, positions)`` that an operator reads, if a layer or a pooling does."""
    groups, op = seen.groups, seen.groups.operators[number]
    layer = weights.layer(op, args)
    if layer is not None:
        if number in read:
            yield read[number], maps(layer, seen.example.batch, op.shapes[0][0])
        return
    axis = _pooled(groups, op)
    if axis is not None and isinstance(args[0], Tensor) and args[0].dim() > 2:
        yield groups.axes[axis], args[0].flatten(2)


def _pooled(groups: Groups, op: Operator) -> int | None:
    """The axis of the channels, dimension 1, that an operator reads at more positions than it gives."""
    made = next((o for o in groups.operators if op.reads and op.reads[0] in o.writes), None)
    if made is None or len(op.reads) != 1 or not op.axes or len(op.axes[0]) < 2:
        return None
    place = made.writes.index(op.reads[0])
    axes, shape = made.axes[place], made.shapes[place]
    same = len(axes) > 2 and axes[1] is not None and axes[1] == op.axes[0][1]
    fewer = same and torch.Size(op.shapes[0][2:]).numel() < torch.Size(shape[2:]).numel()
    return axes[1] if fewer else None


def _members(groups: Groups, axis: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The groups whose units all are on an axis, with the channels ``(units, m)`` of each."""
    for group in groups:
        rows = columns_of(axis, 1, group.offset, group.units)
        if rows is not None:
            yield group.id, rows
