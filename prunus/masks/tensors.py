"""Weights of a network as groups whose units are single elements, blocks, kernels or N:M patterns."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core import ELEMENTS, Fixed, Group, Groups, InputError, Inputs, Mask, Plan, Slice, under
from prunus.core.checks import anything, check_arguments, is_int, shown, some_names
from prunus.core.errors import UnknownNameError, did_you_mean
from prunus.core.proportions import check_mask
from prunus.masks.prunable import Dims, Weight, find

Grain = str | tuple[int, int]


@dataclass(frozen=True, eq=False)
class Tensors(Groups):
    """Groups of weights: one a tensor, named like it.  They score and allocate as the groups of a trace do.

    `pattern` is ``(N, M)`` where N of every M stay.  Their plan is a mask plan, which `prunus.mask_` carries out, and
    what they cost is ``density``: weights that stay.
    """

    pattern: tuple[int, int] | None = None

    def costs(self, keep: Tensor | None = None) -> dict[str, int]:
        """``{"density": ...}``: how many weights stay under the keep mask ``(units,)``."""
        if keep is None:
            return self.costs_of_counts({g.id: g.units for g in self})
        check_mask(self.units, keep)
        return self.costs_of_counts({g.id: int(keep[g.offset : g.offset + g.units].count_nonzero()) for g in self})

    def costs_of_counts(self, counts: Mapping[str, int]) -> dict[str, int]:
        """The same, where `counts` units of each group stay; `InputError` unless they are of all groups."""
        if not isinstance(counts, Mapping) or not all(_within(counts.get(g.id), g.units) for g in self):
            raise InputError(f"costs_of_counts(counts={shown(counts)}): expected how many units stay of every group.")
        return {"density": sum(counts[g.id] * g.slices[0].index.shape[1] for g in self)}

    @property
    def factors(self) -> dict[str, int]:
        """No two groups share a tensor: 1 for each."""
        return {group.id: 1 for group in self}

    def quanta(self, ids: Sequence[str]) -> tuple[int, ...]:
        """What goes of the groups `ids` in one step: of every part one unit, or the M - N of an N:M pattern."""
        return (self.pattern[1] - self.pattern[0] if self.pattern else 1,) * len(ids)

    def plan(self, keep: Tensor) -> Plan:
        """The mask plan of a keep mask ``(units,)``; raises `InputError` for uneven parts."""
        check_mask(self.units, keep)
        self.check_proportions(keep)
        rows = ((g, keep[g.offset : g.offset + g.units, None]) for g in self)
        return Plan(masks={g.id: Mask.of(g.slices[0].scatter(kept)) for g, kept in rows})

    def mask(self, plan: Plan) -> Tensor:
        """The keep mask ``(units,)`` of a mask plan; raises `InputError` when it is of other tensors or other units."""
        check_arguments(locals())
        keep = torch.ones(self.units, dtype=torch.bool)
        for id, mask in plan.masks.items():
            group = self[id]
            s = group.slices[0]
            if mask.shape != tuple(s.tensor.shape):
                raise InputError(
                    f"the plan masks '{id}' of shape {mask.shape}; it has {tuple(s.tensor.shape)} here: the network is "
                    "another one, or was changed since. Make groups = prunus.tensors(model) and a plan of it now."
                )
            rows = s.view(mask.keep)
            if not bool((rows.any(1) == rows.all(1)).all()):
                raise InputError(f"the plan splits units of '{id}': it was made with another grain=.")
            keep[group.offset : group.offset + group.units] = rows.all(1).cpu()
        return keep

    @property
    def left_out(self) -> tuple[str, ...]:
        """A note of what is not among the weights that a density counts; none where there is nothing to say."""
        if not self.fixed:
            return ()
        counted = f"a density counts the {self.costs()['density']:,} weights of {len(self)} tensors"
        first = f"'{self.fixed[0].what}': {self.fixed[0].why}"
        return (f"{counted}; {len(self.fixed)} parameters of two and more dimensions are not among them ({first}).",)

    def alive_weights(self) -> Tensor:
        """The keep mask ``(units,)`` of the units that are not all zero now: of a network masked before."""
        found = [g.slices[0].weight.ne(0).any(1).cpu() for g in self]
        return torch.cat(found) if found else torch.ones(0, dtype=torch.bool)


def _within(count: Any, units: int) -> bool:
    return is_int(count) and 0 <= count <= units


def tensors(
    model: nn.Module,
    grain: Grain = "element",
    *,
    example_inputs: Any = None,
    rows: bool = False,
    only: str | Iterable[str] = (),
    skip: str | Iterable[str] = (),
) -> Tensors:
    """The weights of all layers of a network as groups of units: what a density counts.

    With `example_inputs` they are read off the operators of forward: what convolutions and matrix products multiply by,
    in modules of any kind; where forward computes it from parameters, those whose zeros are zeros of it (the ``v`` of
    weight_norm).  Without, and for what the example does not visit (experts), a rule stands for that: floating-point
    parameters of two or more dimensions, but for embeddings and layers tied to them, what scales another parameter (the
    ``g`` of weight_norm), and, outside of torch's own layers, names with bias, embed, position, token or norm in them,
    and shapes with a first size of one.  ``.fixed`` names what is left out, and why.

    Args:
        model: any network.
        grain: ``"element"``: every weight is a unit; ``(r, c)``: blocks of `r` outputs by `c` inputs, at every kernel
            position; ``"kernel"``: all weights between one input and one output; ``"filter"``: all weights of one
            output; ``"2:4"`` (any N:M): elements, of which a tensor keeps N of every M along its inputs, or all.
        example_inputs: what forward takes: a tensor, a tuple of positional inputs, or `Inputs`.
        rows: whether every output row keeps as many units (what Wanda asks for); not with N:M.
        only, skip: names or globs of the weights that are in, or out: ``skip=["conv1", "fc"]``.

    A tensor that a pattern does not divide, or of which nobody knows what are outputs and inputs, is left whole.  The
    numbers of a tensor's elements take 8 bytes each.

    Raises: `InputError` for another grain, or when nothing is left; `UnknownNameError` for a pattern without a match.

    Source: N:M as in Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021.

    >>> groups = tensors(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3)), "2:4")
    >>> [(g.id, g.units, g.parts) for g in groups], groups.fixed[0].what
    ([('0.weight', 8, 2)], '1.weight')
    """
    check_arguments(locals(), grain=anything, only=some_names)
    pattern = check_grain(grain, rows)
    known = find(model, example_inputs)
    found = {weight.name: weight for weight in known.weights}
    wanted, unwanted = ((p,) if isinstance(p, str) else tuple(p) for p in (only, skip))
    for glob in wanted + unwanted:
        if not any(under(name, glob) for name in found):
            raise UnknownNameError(f"pattern '{glob}' matches no weight.{did_you_mean(glob, list(found))}")
    members: list[Group] = []
    fixed, offset = list(known.others), 0
    for name, weight in found.items():
        if (wanted and not any(under(name, p) for p in wanted)) or any(under(name, p) for p in unwanted):
            continue
        numbers, shape = _numbers(weight.parameter, weight.dims), tuple(weight.parameter.shape)
        divided = _units(numbers, grain)
        if weight.dims is None and (grain != "element" or rows):
            fixed.append(Fixed(name, "nobody knows its outputs and inputs: give example_inputs= that visit it"))
            continue
        if divided is None:
            fixed.append(Fixed(name, f"its shape {shape} is not divisible by the pattern {grain}"))
            continue
        index, parts, floor = divided
        parts = len(numbers) // (grain[0] if isinstance(grain, tuple) else 1) if rows else parts
        s = Slice(name, ELEMENTS, index, "out", weight.parameter)
        used = _used(weight, index)
        members.append(Group(name, len(index), (s,), offset=offset, floor=floor, parts=parts, used=used))
        offset += len(index)
    if not members:
        first = (fixed[len(known.others) :] or fixed)[:3]
        told = "; ".join(f"{f.what}: {f.why}" for f in first) or "the network has none"
        raise InputError(
            f"there is no weight to mask with grain {grain!r} ({told}). Loosen only=, skip= or grain=, or give "
            "example_inputs=."
        )
    made = known.effective if any(g.used for g in members) else None
    return Tensors(
        tuple(members), (), {}, (), tuple(fixed), Inputs(()), least=0.0, effective=made, weights=True, pattern=pattern
    )


def _used(weight: Weight, index: Tensor) -> tuple[Slice, ...] | None:
    """The slice that layers read, where that is not the parameter itself."""
    if weight.effective is None:
        return None
    shown = torch.empty(weight.parameter.shape, dtype=weight.parameter.dtype, device="meta")
    return (Slice(weight.effective, ELEMENTS, index, "out", shown),)


def _numbers(parameter: Tensor, dims: Dims | None) -> Tensor:
    """The numbers of the elements as ``(out, in, kernel)``; every one by itself where nobody knows which is which."""
    numbers = torch.arange(parameter.numel()).reshape(parameter.shape)
    if dims is None:
        return numbers.reshape(-1, 1, 1)
    outs, inner, kernel = dims
    ordered = numbers.permute(*outs, inner, *kernel)
    return ordered.reshape(-1, parameter.shape[inner], math.prod(parameter.shape[d] for d in kernel))


def _units(numbers: Tensor, grain: Grain) -> tuple[Tensor, int, int] | None:
    """The numbers of every unit's elements ``(units, m)``, how many parts, and how many units of each must stay."""
    outs, ins, kernel = numbers.shape
    if grain == "element":
        return numbers.reshape(-1, 1), 1, 1
    if grain == "kernel":
        return numbers.reshape(-1, kernel), 1, 1
    if grain == "filter":
        return numbers.reshape(outs, -1), 1, 1
    n, m = (0, 1) if isinstance(grain, tuple) else map(int, grain.split(":"))
    r, c = grain if isinstance(grain, tuple) else (1, m)
    if outs % r or ins % c:
        return None
    blocks = numbers.reshape(outs // r, r, ins // c, c, kernel).permute(0, 4, 2, 1, 3)  # (.., kernel, .., r, c)
    if isinstance(grain, tuple):
        return blocks.reshape(-1, r * c), 1, 1
    return blocks.reshape(-1, 1), numbers.numel() // m, n


def check_grain(grain: Grain, rows: bool = False) -> tuple[int, int] | None:
    """N and M of a pattern; raises `InputError` for what is no grain."""
    n, m = 0, 0
    if isinstance(grain, tuple):
        good = len(grain) == 2 and all(isinstance(k, int) and k > 0 for k in grain)
    else:
        matched = re.fullmatch(r"(\d+):(\d+)", str(grain))
        n, m = map(int, matched.groups()) if matched else (0, 0)
        good = 0 < n < m or grain in ("element", "kernel", "filter")
    if not good:
        raise InputError(
            f"grain={grain!r}: expected 'element', 'kernel', 'filter', a block such as (4, 1), or N:M such as '2:4'."
        )
    if rows and m:
        raise InputError(f"rows=True goes with elements, kernels and blocks; '{grain}' keeps {n} of every {m} already.")
    return (n, m) if m else None
