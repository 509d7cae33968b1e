"""A traced network as plain data: which group every dimension of every tensor belongs to, and what is fixed, why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from prunus.core import Group, Groups, Slice

VERBS = (  # what a person calls the roles
    ("made by", ("out", "bias")),
    ("per channel", ("depthwise",)),
    ("scaled by", ("norm_scale", "norm_shift", "stat")),
    ("chosen by", ("index",)),
    ("read by", ("in",)),
    ("also", ("other",)),
)
VERB = {role: verb for verb, roles in VERBS for role in roles}
KINDS = {  # the suffix of a group's id where several groups share a dimension, and what its units are called
    "heads": ("head", "heads"),
    "head_dim": ("head dimension", "head dimensions"),
    "groups": ("conv group", "conv groups"),
    "group_width": ("conv-group channel", "conv-group channels"),
}


@dataclass(frozen=True)
class Term:
    """Rows of a dimension that need a unit of every group in `groups` (numbers from 1)."""

    groups: tuple[int, ...]
    rows: int


@dataclass(frozen=True)
class Dim:
    """One dimension of a tensor: its groups in the order of its rows, and why (the rest of) it is fixed, if known."""

    size: int
    terms: tuple[Term, ...] = ()
    why: str = ""

    @property
    def groups(self) -> tuple[int, ...]:
        """The numbers of all its groups, once each."""
        return tuple(dict.fromkeys(number for term in self.terms for number in term.groups))

    @property
    def kept(self) -> int:
        """How many rows no group holds."""
        return self.size - sum(term.rows for term in self.terms)


@dataclass(frozen=True)
class TensorView:
    """A parameter or buffer: `same_as` names the one whose memory it shares, `why` a reason to be fixed as a whole."""

    name: str
    parameter: bool
    dims: tuple[Dim, ...]
    same_as: str = ""
    why: str = ""


@dataclass(frozen=True, eq=False)
class View:
    """What is shown of a traced network.

    Attributes:
        groups: the traced network.
        kinds: class names of the modules by qualified name, where they are known.
    """

    groups: Groups
    kinds: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def cost(self) -> dict[str, int]:
        """The cost of the whole network."""
        return self.groups.costs()

    @cached_property
    def unit_names(self) -> list[tuple[str, str]]:
        """What one unit of every group is called, and several."""
        dims = {tensor.name: tensor.dims for tensor in self.tensors}
        out = []
        for group in self.groups:
            terms = dims[group.slices[0].name][group.slices[0].dim].terms if group.slices else ()
            out.append(kind(group, product=any(len(term.groups) > 1 for term in terms)))
        return out

    @cached_property
    def unit_costs(self) -> list[dict[str, int]]:
        """What a unit of every group costs."""
        return [unit_cost(self.groups, group, self.cost) for group in self.groups]

    @cached_property
    def reasons(self) -> dict[str, list[str]]:
        """What is fixed, gathered by reason."""
        out: dict[str, list[str]] = {}
        for fixed in self.groups.fixed:
            out.setdefault(fixed.why, []).append(fixed.what)
        return out

    @cached_property
    def tensors(self) -> list[TensorView]:
        """Every parameter and buffer, in the order of the model; names that share memory follow one another."""
        terms = axis_terms(self.groups)
        fixed = {_tensor_of(f.what, self.groups): (f.why, _rows_of(f.what)) for f in self.groups.fixed}
        out = []
        for name, tensor in self.groups.tensors.items():
            why, rows = fixed.get(name, ("", None))
            dims = [Dim(n, () if axis is None else terms[axis]) for n, axis in zip(tensor.shape, tensor.axes)]
            at = next((d for d, dim in enumerate(dims) if dim.size == rows and dim.kept), None)
            if at is not None:
                dims[at], why = Dim(dims[at].size, dims[at].terms, why), ""
            shown = TensorView(name, tensor.parameter, tuple(dims), "", why)
            out.append(shown)
            ties = {tied for names in self.groups.ties if name in names for tied in names} - set(self.groups.tensors)
            out += [TensorView(tied, tensor.parameter, shown.dims, name) for tied in sorted(ties)]
        return out


def axis_terms(groups: Groups) -> list[tuple[Term, ...]]:
    """For every row of ``groups.axes``, which groups its indices need, in the order of the indices."""
    of = np.repeat(np.arange(1, len(groups) + 1), [g.units for g in groups])
    out = []
    for axis in groups.axes:
        matrix = axis.numpy()  # (n, k)
        needs = np.sort(np.where(matrix < 0, 0, of[matrix] if of.size else 0), axis=1)
        patterns, first, counts = np.unique(needs, axis=0, return_index=True, return_counts=True)
        found = [
            Term(tuple(dict.fromkeys(int(n) for n in patterns[i] if n)), int(counts[i])) for i in np.argsort(first)
        ]
        out.append(tuple(term for term in found if term.groups))
    return out


def unit_cost(groups: Groups, group: Group, whole: Mapping[str, int] | None = None) -> dict[str, int]:
    """What the network, of cost `whole`, costs less without the first unit of `group`, in parameters and macs."""
    keep = torch.ones(groups.units, dtype=torch.bool)
    keep[group.offset] = False
    whole, without = whole or groups.costs(), groups.costs(keep)
    return {kind: whole[kind] - without[kind] for kind in whole}


def kind(group: Group, *, product: bool = False) -> tuple[str, str]:
    """What one unit of a group is called, and several: channel, neuron, head, head dimension, conv group, entry.

    Args:
        group: a group.
        product: whether a row of what makes it needs a unit of another group as well.

    >>> kind(Group("attn.qkv/heads", 8, ()))
    ('head', 'heads')
    """
    suffix = re.sub(r"#\d+$", "", group.id.rpartition("/")[2])
    first = next(iter(group.slices), None)
    conv = first is not None and first.tensor.dim() > 2
    if "/" not in group.id and product and first is not None and first.index.shape[1] > 1:
        major = bool((first.index[0].diff() == 1).all())
        suffix = ("groups" if conv else "heads") if major else ("group_width" if conv else "head_dim")
    if suffix in KINDS and ("/" in group.id or product):
        return KINDS[suffix]
    if first is not None and first.role in ("in", "stat", "other"):  # nothing makes it: a table that is read in part
        return "entry", "entries"
    return ("neuron", "neurons") if first is not None and first.tensor.dim() == 2 else ("channel", "channels")


def parts(group: Group) -> int:
    """The number of parts of a group that must stay even; 1 when units go one by one."""
    return int(getattr(group, "parts", 1))


def proportions(groups: Groups) -> list[tuple[int, ...]]:
    """Numbers (from 1) of groups whose kept counts must stay in proportion."""
    numbers = {group.id: n for n, group in enumerate(groups, 1)}
    return [tuple(numbers[groups[key].id] for key in keys) for keys in getattr(groups, "proportions", ())]


def together(group: Group) -> list[tuple[str, list[str]]]:
    """What a group cuts, by what it does with the units: ``[("made by", ["conv1"]), ("read by", ["conv2"])]``."""
    out = []
    for verb, roles in VERBS:
        names = list(dict.fromkeys(owner(s) for s in group.with_role(*roles)))
        if names:
            out.append((verb, names))
    return out


def owner(part: Slice) -> str:
    """The module of a slice: its name without the last word when that is the usual one.

    >>> owner(Slice("layer1.conv.weight", 0, torch.zeros(1, 1), "out", torch.zeros(1)))
    'layer1.conv'
    """
    module, _, last = part.name.rpartition(".")
    return module if module and last in ("weight", "bias", "running_mean", "running_var") else part.name


def _tensor_of(what: str, groups: Groups) -> str:
    """The tensor that a fixed thing is about; what is said of a group is said of the tensor it is named after."""
    name = what.partition(":")[0]
    names: Sequence[str] = (name, f"{name}.weight", re.sub(r"(/\w+)?(#\d+)?$", "", name) + ".weight")
    return next((n for n in names if n in groups.tensors), what)


def _rows_of(what: str) -> int | None:
    """The size of the dimension that a fixed thing is about, where it is said.

    >>> _rows_of("fc: 10 of 1000 channels"), _rows_of("fc")
    (1000, None)
    """
    found = re.search(r": \d+ of (\d+) ", what)
    return int(found.group(1)) if found else None
