"""Slices and groups: what is cut together, seen as (units, fan)."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prunus.core.errors import InputError

ELEMENTS = -1  # as a slice's `dim`: the units live on the elements, counted as `flatten` does
ROLES = ("out", "bias", "in", "norm_scale", "norm_shift", "depthwise", "stat", "index", "other")


@dataclass(frozen=True, eq=False)
class Slice:
    """One tensor's share of a group: which indices of which dimension belong to which unit.

    Whatever the layer was, `weight`, `grad` and any per-parameter statistic are shown as ``(units, fan)``.

    Attributes:
        name: qualified name of the parameter or buffer.
        dim: the dimension that the units live on, or `ELEMENTS`: single weights, blocks of them, kernels.
        index: ``(units, m)`` integers, the `m` indices of `dim` that belong to each unit.
        role: what the dimension does, read off the operand position of the traced operator: ``out`` (rows of a
            producing weight), ``bias``, ``in`` (columns of a consuming weight), ``norm_scale``, ``norm_shift``,
            ``depthwise``, ``stat`` (running statistics), ``index`` (a channel selection) or ``other``.
        tensor: the parameter or buffer itself.
        stats: per-parameter statistics by kind (``"grad"``, ...), each of the tensor's shape.

    >>> w = torch.arange(6.).reshape(3, 2)
    >>> s = Slice("fc.weight", 1, torch.tensor([[0], [1]]), "in", w)
    >>> s.weight
    tensor([[0., 2., 4.],
            [1., 3., 5.]])
    """

    name: str
    dim: int
    index: Tensor
    role: str
    tensor: Tensor
    stats: Mapping[str, Tensor] = field(default_factory=dict)

    def view(self, tensor: Tensor) -> Tensor:
        """`tensor`, shaped like the parameter, as ``(units, fan)``; of a complex one, real and imaginary parts."""
        units = self.index.shape[0]
        if tensor.is_complex() and self.dim != ELEMENTS:
            tensor = torch.view_as_real(tensor.resolve_conj())
        if self.dim == ELEMENTS:
            return tensor.reshape(-1)[self.index.to(tensor.device)]
        rows = tensor.index_select(self.dim, self.index.reshape(-1).to(tensor.device))  # (.., units*m, ..)
        return rows.movedim(self.dim, 0).reshape(units, -1)  # (units, m * rest)

    def scatter(self, values: Tensor) -> Tensor:
        """The inverse of `view`: `values` ``(units, fan or 1)`` put back in the tensor's shape, zeros elsewhere."""
        if self.dim == ELEMENTS:
            out = torch.zeros(self.tensor.numel(), dtype=values.dtype, device=values.device)
            return out.index_put((self.index.to(values.device),), values.expand(self.index.shape)).view(
                self.tensor.shape
            )
        rest = [n for d, n in enumerate(self.tensor.shape) if d != self.dim]
        count = self.index.numel()
        if self.tensor.is_complex() and values.is_floating_point() and values.shape[1] > 1:
            values = torch.view_as_complex(values.reshape(len(values), -1, 2).contiguous())
        fan = self.tensor.numel() // max(self.tensor.shape[self.dim], 1) * self.index.shape[1]
        rows = values.expand(self.index.shape[0], fan).reshape(count, *rest).movedim(0, self.dim)
        out = torch.zeros(self.tensor.shape, dtype=values.dtype, device=values.device)
        return out.index_copy(self.dim, self.index.reshape(-1).to(values.device), rows)

    @property
    def weight(self) -> Tensor:
        """The parameter as ``(units, fan)``, detached."""
        return self.view(self.tensor.detach())

    @property
    def grad(self) -> Tensor:
        """The collected gradient as ``(units, fan)``; raises `InputError` when none was collected."""
        return self.statistic("grad")

    def statistic(self, kind: str) -> Tensor:
        """The per-parameter statistic `kind` as ``(units, fan)``; raises `InputError` when it was not collected."""
        if kind not in self.stats:
            raise InputError(
                f"no statistic '{kind}' was collected for '{self.name}' (there is: {', '.join(self.stats) or 'none'}); "
                f"run stats = prunus.collect(model, groups, loader, needs={{'{kind}'}}) first and pass it to score."
            )
        return self.view(self.stats[kind])


@dataclass(frozen=True, eq=False)
class Group:
    """Slices that must be cut together, and their units.

    `id` is the qualified name of the first producing slice in execution order, equal across processes and batch sizes.
    `floor` is the least number of units that must stay, of every part; their number is a multiple of `step`.  A group
    of several `parts` (heads, convolution groups) holds the units of one part after those of the other, and must keep
    as many of each.  `used` are the slices
    as layers read them, where some are of weights that forward computes from parameters: see `Groups.seen`.

    Attributes:
        units: how many there are, over all parts.
        slices: what of which tensor belongs to each of them.
        offset: number of the first unit in the flat numbering of all units of a network.
        stats: statistics of the units, by kind; {} before any was collected.
    """

    id: str
    units: int
    slices: tuple[Slice, ...]
    offset: int = 0
    floor: int = 1
    parts: int = 1
    step: int = 1
    stats: Mapping[str, Any] = field(default_factory=dict)
    used: tuple[Slice, ...] | None = None

    def statistic(self, kind: str) -> Any:
        """The statistic `kind` of the units; raises `InputError` when it was not collected."""
        if kind not in self.stats:
            raise InputError(
                f"no statistic '{kind}' was collected for group '{self.id}' (there is: "
                f"{', '.join(self.stats) or 'none'}); run stats = prunus.collect(model, groups, loader, "
                f"needs={{'{kind}'}}) first and pass it to score."
            )
        return self.stats[kind]

    @property
    def count(self) -> int:
        """The number of units of a part."""
        return self.units // self.parts

    def with_role(self, *roles: str) -> tuple[Slice, ...]:
        """The slices whose role is one of `roles`."""
        return tuple(s for s in self.slices if s.role in roles)

    def computes(self, *roles: str) -> bool:
        """Whether some of the weights of these roles are computed by forward from the parameters of `slices`."""
        own = {s.name for s in self.slices}
        return any(s.role in roles and s.name not in own for s in self.used or ())

    def __repr__(self) -> str:
        return f"Group({self.id!r}, units={self.units}, slices={len(self.slices)})"


def under(name: str, pattern: str) -> bool:
    """Whether a qualified name is `pattern`, lies below it, or matches it as a glob.

    >>> under("layer1.0.conv1.weight", "layer1"), under("layer1.0.conv1.weight", "*.conv2.*")
    (True, False)
    """
    return name == pattern or name.startswith(pattern + ".") or fnmatch.fnmatchcase(name, pattern)
