"""Weights of a network as groups whose units are single elements, blocks, kernels or N:M patterns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunus.core import ELEMENTS, Fixed, Group, Groups, InputError, Inputs, Mask, Plan, Slice, under
from prunus.core.errors import UnknownNameError, did_you_mean

Grain = str | tuple[int, int]
LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase)
IN_FIRST = (nn.modules.conv._ConvTransposeNd,)  # whose weight is (in, out / groups, *kernel)


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
        return self.costs_of_counts({g.id: int(keep[g.offset : g.offset + g.units].count_nonzero()) for g in self})

    def costs_of_counts(self, counts: Mapping[str, int]) -> dict[str, int]:
        """The same, of how many units of every group stay."""
        return {"density": sum(counts[g.id] * g.slices[0].index.shape[1] for g in self)}

    @property
    def factors(self) -> dict[str, int]:
        """No two groups share a tensor: 1 for each."""
        return {group.id: 1 for group in self}

    def quanta(self, ids: Sequence[str]) -> tuple[int, ...]:
        """What goes in one step: of an N:M pattern the M - N of every part, else one unit of every part."""
        return (self.pattern[1] - self.pattern[0] if self.pattern else 1,) * len(ids)

    def plan(self, keep: Tensor) -> Plan:
        """The mask plan of a keep mask ``(units,)``; raises `InputError` for uneven parts."""
        if keep.shape != (self.units,) or keep.dtype != torch.bool:
            raise InputError(
                f"a keep mask has shape ({self.units},) and type bool; given {tuple(keep.shape)}, {keep.dtype}."
            )
        self.check_proportions(keep)
        rows = ((g, keep[g.offset : g.offset + g.units, None]) for g in self)
        return Plan(masks={g.id: Mask.of(g.slices[0].scatter(kept)) for g, kept in rows})

    def mask(self, plan: Plan) -> Tensor:
        """The keep mask ``(units,)`` of a mask plan; raises `InputError` when it is of other tensors or other units."""
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

    def alive_weights(self) -> Tensor:
        """The keep mask ``(units,)`` of the units that are not all zero now: of a network masked before."""
        found = [g.slices[0].weight.ne(0).any(1).cpu() for g in self]
        return torch.cat(found) if found else torch.ones(0, dtype=torch.bool)


def tensors(
    model: nn.Module,
    grain: Grain = "element",
    *,
    rows: bool = False,
    only: str | Iterable[str] = (),
    skip: str | Iterable[str] = (),
) -> Tensors:
    """The weights of convolutions, linear layers, attention and recurrent layers as groups of units.

    Args:
        model: any network; embeddings (and layers tied to them), norms and biases are left out.
        grain: ``"element"``: every weight is a unit; ``(r, c)``: blocks of `r` outputs by `c` inputs, at every kernel
            position; ``"kernel"``: all weights between one input and one output; ``"2:4"`` (any N:M): elements, of
            which a tensor keeps N of every M along its inputs, or all.
        rows: whether every output row keeps as many units (what Wanda asks for); not with N:M.
        only, skip: names or globs of the weights that are in, or out: ``skip=["conv1", "fc"]``.

    A tensor that a pattern does not divide is left whole: see ``.fixed``.  The numbers of a tensor's elements take 8
    bytes each.

    Raises: `InputError` for another grain, or when nothing is left; `UnknownNameError` for a pattern without a match.

    Source: N:M as in Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021.

    >>> groups = tensors(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3)), "2:4")
    >>> [(g.id, g.units, g.parts) for g in groups], groups.fixed[0].what
    ([('0.weight', 8, 2)], '1.weight')
    """
    pattern = check_grain(grain, rows)
    found = {name: (owner, p) for name, owner, p in weights_of(model)}
    wanted, unwanted = ((p,) if isinstance(p, str) else tuple(p) for p in (only, skip))
    for glob in wanted + unwanted:
        if not any(under(name, glob) for name in found):
            raise UnknownNameError(f"pattern '{glob}' matches no weight.{did_you_mean(glob, list(found))}")
    members: list[Group] = []
    fixed, offset = [], 0
    for name, (owner, parameter) in found.items():
        if (wanted and not any(under(name, p) for p in wanted)) or any(under(name, p) for p in unwanted):
            continue
        divided = _units(_numbers(owner, parameter), grain)
        if divided is None:
            fixed.append(Fixed(name, f"its shape {tuple(parameter.shape)} is not divisible by the pattern {grain}"))
            continue
        index, parts, floor = divided
        parts = _rows_of(parameter, owner, grain) if rows else parts
        s = Slice(name, ELEMENTS, index, "out", parameter)
        members.append(Group(name, len(index), (s,), offset=offset, floor=floor, parts=parts))
        offset += len(index)
    if not members:
        raise InputError(
            f"there is no weight to mask: {len(found)} weights of layers, {len(fixed)} not divisible by {grain}. "
            "Loosen only=, skip= or grain=."
        )
    return Tensors(tuple(members), (), {}, (), tuple(fixed), Inputs(()), least=0.0, weights=True, pattern=pattern)


def weights_of(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Every weight once, by its first name, with the module that holds it."""
    embedded = {
        id(p) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for p in m.parameters(False)
    }
    for path, module in model.named_modules():
        if isinstance(module, LAYERS) or _stored_transposed(module):
            for leaf, p in module.named_parameters(recurse=False):
                if p.dim() > 1 and "bias" not in leaf and p.is_floating_point() and id(p) not in embedded:
                    embedded.add(id(p))
                    yield f"{path}.{leaf}".lstrip("."), module, p


def _stored_transposed(module: nn.Module) -> bool:
    """The linear layer of GPT-2 in transformers, whose weight is (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def _numbers(owner: nn.Module, parameter: Tensor) -> Tensor:
    """The numbers of the elements as ``(out, in, kernel)``."""
    numbers = torch.arange(parameter.numel()).reshape(parameter.shape)
    if isinstance(owner, IN_FIRST) or _stored_transposed(owner):
        numbers = numbers.transpose(0, 1)
    return numbers.reshape(*numbers.shape[:2], -1)


def _units(numbers: Tensor, grain: Grain) -> tuple[Tensor, int, int] | None:
    """The numbers of every unit's elements ``(units, m)``, how many parts, and how many units of each must stay."""
    outs, ins, kernel = numbers.shape
    if grain == "element":
        return numbers.reshape(-1, 1), 1, 1
    if grain == "kernel":
        return numbers.reshape(-1, kernel), 1, 1
    n, m = (0, 1) if isinstance(grain, tuple) else map(int, grain.split(":"))
    r, c = grain if isinstance(grain, tuple) else (1, m)
    if outs % r or ins % c:
        return None
    blocks = numbers.reshape(outs // r, r, ins // c, c, kernel).permute(0, 4, 2, 1, 3)  # (.., kernel, .., r, c)
    if isinstance(grain, tuple):
        return blocks.reshape(-1, r * c), 1, 1
    return blocks.reshape(-1, 1), numbers.numel() // m, n


def _rows_of(parameter: Tensor, owner: nn.Module, grain: Grain) -> int:
    """How many rows of units a tensor has: its outputs, or rows of blocks."""
    return _numbers(owner, parameter).shape[0] // (grain[0] if isinstance(grain, tuple) else 1)


def check_grain(grain: Grain, rows: bool = False) -> tuple[int, int] | None:
    """N and M of a pattern; raises `InputError` for what is no grain."""
    n, m = 0, 0
    if isinstance(grain, tuple):
        good = len(grain) == 2 and all(isinstance(k, int) and k > 0 for k in grain)
    else:
        matched = re.fullmatch(r"(\d+):(\d+)", str(grain))
        n, m = map(int, matched.groups()) if matched else (0, 0)
        good = 0 < n < m or grain in ("element", "kernel")
    if not good:
        raise InputError(
            f"grain={grain!r}: expected 'element', 'kernel', a block such as (4, 1), or N:M such as '2:4'."
        )
    if rows and m:
        raise InputError(f"rows=True goes with elements, kernels and blocks; '{grain}' keeps {n} of every {m} already.")
    return (n, m) if m else None
