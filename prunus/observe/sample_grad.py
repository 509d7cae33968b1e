"""The gradients of some samples, kept one by one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, distributed

from prunus.core.series import once
from prunus.observe.average import parameters_of
from prunus.observe.base import Seen, collectors, inputs_of, pieces
from prunus.observe.samples import sample_gradients

SAMPLES = 128  # of all processes together
MEMORY = 2 * 2**30  # bytes that they may take
PRODUCERS = ("out", "bias", "depthwise", "in")  # what makes the units of a group, each gate once


@collectors.register("sample-grad", of="group", labels=True)
def sample_grad(seen: Seen, samples: int = SAMPLES, memory: int = MEMORY) -> dict[str, Tensor]:
    r"""Gradient $\partial \ell_n / \partial w$ of each of the first 128 samples, by what produces the units of a group.

    Returns ``{group id: (samples, units, fan)}``, the producing slices of the group side by side along the fan.  Fewer
    samples where they would take more than 2 GB (`memory`), said by a warning.  On several processes each sees its
    share, and all get all.
    """
    parameters = parameters_of(seen.groups)
    groups = seen.groups
    producers = {g.id: [s for s in once(groups, g, PRODUCERS)[0] if s.name in parameters] for g in groups}
    cost = sum(s.view(s.tensor).numel() * s.tensor.element_size() for of in producers.values() for s in of)
    fit = min(samples, max(1, memory // max(cost, 1)))
    if fit < samples:
        warnings.warn(
            f"the gradients of {samples} samples would take {samples * cost / 2**30:.1f} GB; {fit} are kept, so that "
            f"the Fisher matrix has rank {fit}. Use only= to look at fewer layers.",
            RuntimeWarning,
            stacklevel=2,
        )
    ranks = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
    few = replace(seen, loader=_first(seen, -(-fit // ranks)))
    kept: dict[str, list[Tensor]] = {}
    names = {s.name for of in producers.values() for s in of}
    unmet: set[str] = set()  # weights that forward computes in another way on these data
    for _, rows, count in sample_gradients(few, lambda out, batch: [seen.value(out, batch, inputs_of(batch).batch)]):
        unmet |= {name for name, of in few.handles(names).items() if not of}
        got: dict[str, list[Tensor]] = {}
        for name, row in rows:
            got.setdefault(name, []).append(row)
        for name in names:
            tensor = parameters[name]
            kept.setdefault(name, []).extend(got.get(name, [tensor.new_zeros(count, *tensor.shape)]))
    found = {name: torch.cat(parts) for name, parts in kept.items()}
    views = {
        id: torch.cat([torch.stack([s.view(row) for row in found[s.name]]) for s in of], 2)
        for id, of in producers.items()
        if of and not unmet.intersection(s.name for s in of)
    }
    return {id: torch.cat(_everybodys(view, ranks)) for id, view in views.items()}


def _first(seen: Seen, count: int) -> Iterator[Any]:
    """Batches that hold the first `count` samples."""
    for batch in seen.loader:
        size = inputs_of(batch).batch
        yield batch if size <= count else next(pieces(batch, count))
        count -= size
        if count <= 0:
            return


def _everybodys(mine: Tensor, ranks: int) -> list[Tensor]:
    if ranks == 1:
        return [mine]
    shares: list[Tensor | None] = [None] * ranks
    distributed.all_gather_object(shares, mine.detach().cpu())
    return [share.to(mine.device) for share in shares if share is not None]
