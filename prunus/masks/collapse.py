"""Layer collapse: tensors through which nothing flows any more, and how sparse a network may become before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import InputError, Plan
from prunus.core.checks import check_arguments
from prunus.masks.at_init import masked, put_back
from prunus.masks.tensors import Tensors
from prunus.observe import collect


@dataclass(frozen=True)
class Collapse:
    """What a mask does to the flow: the tensors that are `dead` (no path from input to output uses them), and those of
    them that were `emptied` to the last unit that every tensor keeps.
    """

    dead: tuple[str, ...] = ()
    emptied: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.dead or self.emptied)

    def __str__(self) -> str:
        said = []
        if self.dead:
            said.append(f"no path from input to output uses {len(self.dead)} tensors (first: '{self.dead[0]}')")
        if self.emptied:
            said.append(f"{len(self.emptied)} tensors are down to their last unit (first: '{self.emptied[0]}')")
        return "; ".join(said) or "every tensor is on a path from input to output"


def collapse(model: nn.Module, groups: Tensors, plan: Plan, data: Iterable[Any] | None = None) -> Collapse:
    r"""Which tensors a mask plan cuts off: those with $\sum_w |w|\, m\, \partial R / \partial |w| = 0$.

    $R$ is the sum of the outputs for inputs of ones with absolute masked weights, as in SynFlow; a sum of a tensor is
    what flows through it.  Where nothing flows without the mask (behind a scale that starts at zero), the mask is not
    the cause.  Nothing is repaired.

    Args: data: a batch, for the shape of the inputs, where the groups know none.

    >>> import prunus
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> keep = {"0.weight": torch.tensor([[True, False], [False, False]]), "2.weight": torch.tensor([[False, True]])}
    >>> plan = prunus.Plan(masks={name: prunus.core.Mask.of(mask) for name, mask in keep.items()})
    >>> print(collapse(net, prunus.tensors(net), plan, [torch.ones(1, 2)]).dead)
    ('0.weight',)
    """
    check_arguments(locals())
    keep, batch = groups.mask(plan), [*islice(data or (), 1)]
    with masked(groups, keep):
        left = _flows(model, groups, batch)
    with _unmasked(groups, keep):
        whole = _flows(model, groups, batch)
    dead = tuple(id for id in left if whole[id] and not left[id])
    return Collapse(dead, emptied(groups, keep))


def _flows(model: nn.Module, groups: Tensors, batch: list[Any]) -> dict[str, bool]:
    """Whether anything flows through each tensor of the network as it is."""
    flow, found = collect(model, groups, batch, {"flow"}).kinds["flow"], {}
    for group in groups.seen():
        weight = group.slices[0]  # as layers read it
        found[group.id] = bool((weight.weight.double().abs() * weight.view(flow[weight.name])).sum() > 0)
    return found


@contextmanager
def _unmasked(groups: Tensors, keep: Tensor) -> Iterator[None]:
    """What a keep mask ``(units,)`` holds at zero is one: the network may be masked already."""
    with put_back(groups) as parameters:
        for g in groups:
            weight = parameters[g.id]
            gone = g.slices[0].scatter(~keep[g.offset : g.offset + g.units, None]).to(weight.device)
            weight.masked_fill_((weight == 0) & gone, 1)
        yield


def lost(groups: Tensors, keep: Tensor) -> tuple[str, ...]:
    """What there is to say of tensors that a keep mask ``(units,)`` has taken all of."""
    found = Collapse(emptied=emptied(groups, keep))
    how = "a higher density, or allocator='uniform' or 'erk', leaves them more; a ranking by"
    return (
        f"layer collapse: {found}; {how} `scores` does up to `prunus.masks.safe_sparsity(groups, scores)`.",
    ) * bool(found)


def emptied(groups: Tensors, keep: Tensor) -> tuple[str, ...]:
    """The tensors of which a keep mask ``(units,)`` leaves no more than the last unit that every tensor keeps."""
    return tuple(g.id for g in groups if int(keep[g.offset : g.offset + g.units].sum()) <= g.floor < g.units)


def safe_sparsity(groups: Tensors, scores: Mapping[str, Tensor]) -> tuple[float, str]:
    r"""The highest sparsity at which one ranking of all scores leaves every tensor a unit, and the tensor that limits.

    $\#\{u : s_u < \min_l \max_{u \in l} s_u\}$ units can go.

    Raises: `InputError` when there are no scores.

    >>> import prunus
    >>> groups = prunus.tensors(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
    >>> safe_sparsity(groups, {"0.weight": torch.tensor([1., 2., 3., 4.]), "1.weight": torch.tensor([2., 3.])})
    (0.5, '1.weight')
    """
    check_arguments(locals())
    if not scores:
        raise InputError("safe_sparsity: there are no scores; give what prunus.score(groups, criterion) returns.")
    best = {id: float(s.max()) for id, s in scores.items()}
    limiting = min(best, key=best.__getitem__)
    gone = torch.cat([scores[g.id] < best[limiting] if g.id in scores else torch.zeros(g.units).bool() for g in groups])
    sizes = torch.cat([torch.full((g.units,), g.slices[0].index.shape[1]) for g in groups])
    return float(sizes[gone].sum() / sizes.sum()), limiting
