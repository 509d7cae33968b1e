"""Weights set to zero for good, and the rest made to make up for them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunus.core import Fixed, InputError, Mask, Plan
from prunus.core.checks import check_arguments
from prunus.core.held import check_free, hold_weight_
from prunus.core.kinds import check_kind
from prunus.core.undo import all_or_nothing, keep_values
from prunus.masks.collapse import lost
from prunus.masks.repair import check_choice, outputs, solve_
from prunus.masks.solve import repairs
from prunus.masks.tensors import Tensors
from prunus.observe.moments import LARGEST


@dataclass(frozen=True, eq=False)
class Masked:
    """What `mask_` did: the network, the plan as carried out, the fraction of weights left, in all and by tensor.

    `notes` say what was not repaired, and which tensors are down to their last unit.

    Attributes:
        model: the network, changed in place.
        density: weights left over weights of all masked tensors, in (0, 1].
        densities: the same by tensor.
        left_alone: parameters that a density does not count, and why.
    """

    model: nn.Module
    plan: Plan
    density: float
    densities: Mapping[str, float]
    repaired: int = 0  # layers solved again
    left_alone: tuple[Fixed, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        weights = sum(math.prod(mask.shape) for mask in self.plan.masks.values())
        told = f"density {self.density:.1%} of {weights:,} weights in {len(self.densities)} tensors"
        rows = [f"{told}; {self.repaired} layers repaired"]
        rows += [f"  {name}: {density:.1%}" for name, density in self.densities.items()]
        rows += [f"  {left.what} is left out: {left.why}" for left in self.left_alone]
        return "\n".join(rows + list(self.notes))


def mask_(
    model: nn.Module,
    groups: Tensors,
    plan: Plan,
    *,
    repair: bool | str = False,
    data: Iterable[Any] | None = None,
    limit: int | None = 1024,
    seed: int = 0,
) -> Masked:
    r"""Set the weights that a plan removes to zero, $w \leftarrow w \odot m$, for good: see `prunus.hold_`.

    Args:
        model: changed in place; its ``state_dict`` keys stay, and `prunus.save` stores the zeros.
        groups: what `prunus.tensors` returned of it; plan: what `prunus.allocate` made of those.
        repair: whether and how the kept weights make up for the others, layer by layer, as `prunus.masks.repairs`
            names it.  ``"exact"`` (True): least squares; ``"fast"``: SparseGPT's update; ``"sparsegpt"``, ``"obc"``:
            choose the weights by themselves too, as many of every tensor as the plan keeps.
        data: unlabelled batches ``x`` or ``(x, ...)``, for a repair; at most `limit` samples of them are used, at once.
        seed: of the rows that are drawn.

    Raises: `InputError` for a plan of other groups, a repair without data, or NaN in the data; `UnknownNameError`; the
    network is then as it was.

    Source: Han et al., NIPS 2015 (masks); Frantar et al., OBC, NeurIPS 2022 and SparseGPT, ICML 2023 (repair).

    >>> import prunus
    >>> net = nn.Sequential(nn.Linear(4, 2))
    >>> groups = prunus.tensors(net, "2:4")
    >>> plan = prunus.allocate(groups, prunus.score(groups, "l1"), prunus.Budget(density=0.5))
    >>> mask_(net, groups, plan).densities
    {'0.weight': 0.5}
    """
    check_arguments(locals())
    check_kind(model)
    if not groups.weights or plan.groups:
        raise InputError(
            "mask_ takes the groups and the plan of weights: groups = prunus.tensors(model), plan = "
            "prunus.allocate(groups, ...). Units of prunus.trace are cut by prunus.shrink_."
        )
    parameters = dict(model.named_parameters())
    for g in groups:
        if parameters.get(g.id) is not g.slices[0].tensor:
            raise InputError(f"the groups are of another network: '{g.id}' is no tensor of the one given.")
    check_free({g.id: parameters[g.id] for g in groups})
    chosen = groups.mask(plan)
    keep = {g.id: g.slices[0].scatter(chosen[g.offset : g.offset + g.units, None]) for g in groups}
    count: int = 0
    notes: tuple[str, ...] = ()
    with all_or_nothing(model):
        if repair:
            count, notes = _repair(model, groups, keep, repair, data, limit, seed)
        for name, mask in keep.items():
            hold_weight_(model, name, mask)
        kept, total = sum(int(k.sum()) for k in keep.values()), sum(k.numel() for k in keep.values())
        densities = {name: float(k.double().mean()) for name, k in keep.items()}
        plan = Plan(masks={name: Mask.of(k) for name, k in keep.items()})
        return Masked(
            model, plan, kept / total, densities, count, groups.fixed, notes + lost(groups, groups.mask(plan))
        )


def _repair(
    model: nn.Module, groups: Tensors, keep: dict[str, Any], repair: bool | str, data: Any, limit: Any, seed: int
) -> tuple[int, tuple[str, ...]]:
    """Solve the masked layers again; `keep` takes up the masks that the repair chose.  How many, and notes."""
    name = "exact" if repair is True else str(repair)
    entry = repairs[name]
    check_choice(name, groups)
    if data is None:
        raise InputError(f"repair='{name}' looks at what goes into the layers: give data= batches.")
    holed = [id for id, mask in keep.items() if not bool(mask.all())]
    wanted = outputs(model, holed, data, limit, seed)
    weights = {id: groups[id].slices[0].tensor.detach().clone() for id in holed}
    with torch.no_grad():  # before any layer is solved, so that none is seen half masked
        for id in holed:
            keep_values(groups[id].slices[0].tensor)
            groups[id].slices[0].tensor.masked_fill_(~keep[id].to(weights[id].device), 0)
    solved = solve_(model, groups, weights, keep, wanted, entry.call)
    keep.update({id: mask.cpu() for id, mask in solved.items()})
    rest = [id for id in holed if id not in solved]
    why = f"shared, of no layer, or of one with over {LARGEST} inputs"
    told = f"{len(rest)} masked weights (first: '{rest[0]}') were not repaired: {why}." if rest else ""
    return len(solved), (told,) if told else ()
