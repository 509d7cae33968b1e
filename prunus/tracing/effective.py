"""Weights that forward computes from parameters: which of them layers read, as what, and whose slices they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from prunus.core import Slice
from prunus.core.effective import Effective, Numbering
from prunus.core.running import has_values
from prunus.tracing.calls import Dim, Dims

if TYPE_CHECKING:
    from prunus.tracing.tracer import Tracer

ORDER = {"out": 0, "depthwise": 1, "index": 1, "norm_scale": 2, "bias": 3}  # as groups are named after them
WORDS = {"bias": "bias", "norm_shift": "bias", "stat": "statistic"}  # what a tensor of such a role is called
Rows = Callable[[int], Sequence[tuple[int, Tensor]]]  # axis -> per family, the indices of each of its units


class Uses:
    """What operators that data go through read of parameters, and of tensors computed from parameters alone."""

    def __init__(self, numbering: Numbering, leaves: Mapping[str, Tensor]) -> None:
        self.numbering, self.leaves = numbering, leaves
        self.computing = False  # whether the present operator computes from parameters alone
        self.roles: dict[tuple[int, int], tuple[str, int]] = {}  # (number, dim) -> role, number of the call
        self.dims: dict[int, Dims] = {}  # of what was computed
        self.shown: dict[int, Tensor] = {}  # its shape and type
        self.modules: dict[int, str] = {}  # number -> the module that reads it first
        self.weights: dict[str, int] = {}  # computed tensors that some operator gives a role, in order of execution
        self.made_of: dict[str, set[str]] = {}  # name of such a weight -> the leaves that it is a function of
        self.others: set[int] = set()  # what is computed in another way than the numbers say: written to in place, say

    def role(self, dim: Dim, role: str, call: int) -> None:
        """What a dimension does, the first time an operator with data says so."""
        if dim.origin is not None and not self.computing:
            self.roles.setdefault(dim.origin, (role, call))

    def computed(self, outs: Sequence[Tensor], dims: list[Dims]) -> list[Dims]:
        """The dimensions of a computed tensor know that they are its own."""
        out = []
        for tensor, of in zip(outs, dims):
            number = self.numbering.of(tensor)
            if number is not None and self.numbering.expressions.base[number] == number:
                of = [Dim(d.labels, d.source, (number, k)) for k, d in enumerate(of)]
                self.dims[number] = of
                self.shown[number] = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
            out.append(of)
        return out

    def read(self, inputs: Sequence[Tensor], module: str) -> list[int]:
        """The numbered tensors that an operator with data reads; once each, whether the numbers tell the truth."""
        found = []
        for tensor in () if self.computing else inputs:
            number = self.numbering.of(tensor)
            if number is None:
                continue
            base = self.numbering.expressions.base[number]
            found.append(base)
            if base not in self.modules:
                self.modules[base] = module
                if base in self.dims and not self._holds(number, tensor):
                    self.others.add(base)
        return found

    def named(self, numbers: Sequence[int]) -> tuple[str, ...]:
        """The names of parameters, buffers and effective weights among numbered tensors."""
        names = {number: name for name, number in self.weights.items()}
        made = self.numbering.expressions.made
        found = (made[n] if isinstance(made[n], str) else names.get(n) for n in numbers)
        return tuple(name for name in found if isinstance(name, str))

    def _holds(self, number: int, tensor: Tensor) -> bool:
        leaves = self.numbering.expressions.leaves(number)
        if not all(has_values(t) for t in (tensor, *(self.leaves[name] for name in leaves))):
            return True
        value = self.numbering.expressions.values([number], self.leaves)[number]
        return value.shape == tensor.shape and torch.allclose(value, tensor.detach(), 1e-4, 1e-6, equal_nan=True)

    def settle(self) -> None:
        """Name the computed tensors that some operator gives a role, by who reads them."""
        read: dict[int, tuple[int, str]] = {}
        for (number, _), (role, call) in self.roles.items():
            if number in self.dims and number not in self.others:
                read[number] = min(read.get(number, (call, role)), (call, role))
        seen: Counter[str] = Counter()
        for number, (_, role) in sorted(read.items(), key=lambda item: (item[1][0], item[0])):
            leaves = self.numbering.expressions.leaves(number)
            if any(isinstance(t := self.leaves[n], nn.Parameter) and t.is_floating_point() for n in leaves):
                name = f"{self.modules[number]}:{WORDS.get(role, 'weight')}"
                seen[name] += 1
                name = name if seen[name] == 1 else f"{name}#{seen[name]}"
                self.weights[name], self.made_of[name] = number, leaves


def spread_roles(tracer: Tracer) -> None:
    """Parameters get the roles of what is computed from them, along the dimensions that are cut alike."""
    uses = tracer.uses
    uses.settle()
    for name, number in uses.weights.items():
        names = sorted(uses.made_of[name])
        bare = [(n, d) for n in names if isinstance(uses.leaves[n], nn.Parameter) for d in range(uses.leaves[n].dim())]
        for d, dim in enumerate(uses.dims[number]):
            if dim.labels is None or (number, d) not in uses.roles:
                continue
            atoms = tracer.labels.resolve(dim.labels)
            for place in bare:
                mine = tracer.initial[place[0]][place[1]].labels
                if place not in tracer.roles and mine is not None:
                    own = tracer.labels.resolve(mine)
                    if np.isin(own[own >= 0], atoms).any():
                        tracer.roles[place] = uses.roles[number, d]


def effective(tracer: Tracer) -> Effective | None:
    """The effective weights of a traced network that are no parameters; None where there are none."""
    uses = tracer.uses
    return Effective(uses.numbering.expressions, uses.weights, uses.leaves) if uses.weights else None


def used_slices(
    tracer: Tracer, axes: Callable[[Dim], int | None], rows: Rows, slices: Sequence[Sequence[Slice]]
) -> list[tuple[Slice, ...] | None]:
    """Per family, its slices with effective weights for the parameters that they are computed from.

    None where that changes nothing.  A parameter that is read as it is too keeps its slice.
    """
    uses, expressions = tracer.uses, tracer.uses.numbering.expressions
    found: list[list[tuple[Any, Slice]]] = [[] for _ in slices]
    made_of: list[set[str]] = [set() for _ in slices]
    for name, number in uses.weights.items():
        for d, dim in enumerate(uses.dims[number]):
            axis = axes(dim)
            role, call = uses.roles.get((number, d), ("other", len(tracer.calls)))
            for f, index in rows(axis) if axis is not None else ():
                found[f].append(((ORDER.get(role, 4), call, name, d), Slice(name, d, index, role, uses.shown[number])))
                made_of[f] |= uses.made_of[name]
    out: list[tuple[Slice, ...] | None] = []
    for f, members in enumerate(slices):
        if not found[f]:
            out.append(None)
            continue
        for s in members:
            leaf = expressions.leaf(s.name)
            if s.name not in made_of[f] or leaf in uses.modules:
                role, call = uses.roles.get((leaf, s.dim), (s.role, len(tracer.calls)))
                found[f].append(((ORDER.get(role, 4), call, s.name, s.dim), replace(s, role=role)))
        out.append(tuple(s for _, s in sorted(found[f], key=lambda item: item[0])))
    return out
