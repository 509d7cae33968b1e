"""From labels to groups: number the units, gather them by what they are part of, name the groups."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from prunus.core import Cost, Fixed, Group, Groups, Inputs, IntFact, Operator, Slice, TensorAxes
from prunus.tracing.effective import effective, used_slices
from prunus.tracing.families import families_of, rank
from prunus.tracing.labels import NONE, Atoms
from prunus.tracing.parts import Numbering, free_choices, row_blocks, spread
from prunus.tracing.tracer import Dim, Tracer


class Axes:
    """Every distinct labelled dimension once, in flat unit numbers."""

    def __init__(self, tracer: Tracer, number: Atoms) -> None:
        self.tracer, self.number = tracer, number
        self.matrices: list[Atoms] = []
        self._seen: dict[bytes, int] = {}
        self._of: dict[int, tuple[Atoms, int | None]] = {}
        self.counted: set[int] = set()  # axes that say how many rows are kept, but not which: it differs between parts

    def __call__(self, dim: Dim) -> int | None:
        """The number of a dimension's axis; None when nothing of it can be cut."""
        if dim.labels is None:
            return None
        key = id(dim.labels)
        if key not in self._of:
            self._of[key] = (dim.labels, self._intern(dim.labels))  # the labels are kept, so the id stays theirs
        return self._of[key][1]

    def _intern(self, labels: Atoms) -> int | None:
        resolved = self.tracer.labels.resolve(labels)
        units = np.where(resolved < 0, NONE, self.number[np.maximum(resolved, 0)])
        units = np.sort(units, axis=1)  # a row is a set of units
        units = np.ascontiguousarray(units[:, (units >= 0).any(0)])
        if units.shape[1] == 0:
            return None
        key = units.tobytes() + bytes(str(units.shape), "ascii")
        if key not in self._seen:
            self._seen[key] = len(self.matrices)
            self.matrices.append(units)
        return self._seen[key]


@dataclass(eq=False)
class Built:
    """Groups in the present state of the labels, with the axis of any dimension and the atom of every unit."""

    groups: Groups
    axes: Axes
    atoms: Atoms


def build(tracer: Tracer, inputs: Inputs) -> Built:
    """Groups, operators and costs of a traced forward, once nothing can be emptied any more."""
    while True:
        built = _build(tracer, inputs)
        bare = _without_parameters(built.groups)
        if bare.any():
            tracer.labels.fix(built.atoms[bare], "no parameter depends on it")
            continue
        loose = _emptiable(built.groups)
        if not loose.any():
            return built
        tracer.labels.fix(built.atoms[loose], "a dimension could lose all of its rows")


def _without_parameters(groups: Groups) -> NDArray[np.bool_]:
    """Units of groups that live in buffers alone: there is nothing to gain by cutting them."""
    bare = [not any(isinstance(s.tensor, torch.nn.Parameter) or s.role == "index" for s in g.slices) for g in groups]
    return np.repeat(np.array(bare, dtype=bool), [g.units for g in groups])


def _emptiable(groups: Groups) -> NDArray[np.bool_]:
    """Units of dimensions that could be emptied although every group keeps a unit.

    A dimension is safe when some row always survives, or when it holds all combinations of the units of some groups.
    """
    numbering = Numbering.of(groups)
    loose = np.zeros(groups.units, dtype=bool)
    for axis in groups.axes:
        matrix = axis.numpy()
        if not any(times for times, _ in row_blocks(matrix, numbering)):
            loose[matrix[matrix >= 0]] = True
    return loose


def _build(tracer: Tracer, inputs: Inputs) -> Built:
    places = {
        (name, d): tracer.labels.resolve(dim.labels)
        for name, tensor in tracer.tensors.items()
        for d, dim in enumerate(tracer.initial[name])
        if dim.labels is not None
    }
    families, number = families_of(tracer, places)
    axes = Axes(tracer, number)
    tensors = {
        name: TensorAxes(
            tuple(tensor.shape),
            tuple(axes(dim) for dim in tracer.initial[name]),
            isinstance(tensor, torch.nn.Parameter),
        )
        for name, tensor in tracer.tensors.items()
    }
    batch = inputs.batch
    operators = tuple(_operator(tracer, i, axes, batch) for i in range(len(tracer.calls)))
    ragged = free_choices(axes.matrices, [len(f) for f in families], tensors, operators)
    parts = spread(axes, families, ragged)
    members = _members(tracer, tensors, axes, families, parts)
    groups = Groups(
        members=members,
        axes=tuple(torch.from_numpy(m) for m in axes.matrices),
        tensors=tensors,
        operators=operators,
        fixed=_fixed(tracer, places),
        inputs=inputs,
        ties=tuple(tuple(names) for names in tracer.ties.values()),
        outputs=tuple(tracer.outputs),
        caches=tuple(sorted(tracer.caches)),
        counted=frozenset(axes.counted),
        effective=effective(tracer),
        starts=tuple(tracer.starts),
    )
    return Built(groups, axes, np.concatenate([np.zeros(0, np.int64), *families]))


def _members(
    tracer: Tracer,
    tensors: dict[str, TensorAxes],
    axes: Axes,
    families: list[NDArray[np.int64]],
    parts: list[int],
) -> tuple[Group, ...]:
    """Every family with its slices, named after its first producing slice."""
    sizes = [len(f) for f in families]
    offsets = np.cumsum([0, *sizes])
    slices: list[list[Slice]] = [[] for _ in families]
    places = sorted(
        ((name, d) for name, t in tensors.items() for d, axis in enumerate(t.axes) if axis is not None),
        key=lambda place: rank(tracer, place),
    )

    @cache
    def rows(axis: int) -> list[tuple[int, torch.Tensor]]:
        return _indices(axes.matrices[axis], offsets)

    for name, d in places:
        axis = tensors[name].axes[d]
        assert axis is not None
        role = tracer.roles.get((name, d), ("other", 0))[0]
        for f, index in rows(axis):
            slices[f].append(Slice(name, d, index, role, tracer.tensors[name]))
    names = _names(slices, tensors, parts)
    used = used_slices(tracer, axes, rows, slices)
    return tuple(
        Group(names[f], sizes[f], tuple(slices[f]), int(offsets[f]), parts=parts[f], used=used[f])
        for f in range(len(families))
        if slices[f]
    )


def _indices(matrix: Atoms, offsets: NDArray[np.int64]) -> list[tuple[int, torch.Tensor]]:
    """Per family in an axis, the indices of each of its units: ``(units, m)``; without those whose units have unequally
    many."""
    row, column = np.nonzero(matrix >= 0)
    units = matrix[row, column]
    order = np.lexsort((row, units))
    row, units = row[order], units[order]
    family = np.searchsorted(offsets, units, side="right") - 1
    out = []
    for f in np.unique(family):
        size = int(offsets[f + 1] - offsets[f])
        times = np.bincount(units[family == f] - offsets[f], minlength=size)
        if times.min() < times.max():  # a weight that forward computes may hold a few units alone
            continue
        out.append((int(f), torch.from_numpy(row[family == f].reshape(size, -1).copy())))
    return out


def _names(slices: list[list[Slice]], tensors: dict[str, TensorAxes], parts: list[int]) -> list[str]:
    """The qualified name of the first slice; axes of a product, and disjoint parts, get a suffix."""
    base = [s[0].name.removesuffix(".weight") if s else "" for s in slices]
    clash = {name for name, n in Counter(base).items() if n > 1}
    seen: Counter[str] = Counter()
    names = []
    for name, group, many in zip(base, slices, parts):
        if name not in clash:
            names.append(name)
            continue
        first = group[0]
        rows = tensors[first.name].shape[first.dim]
        if many > 1 or (first.index.numel() == rows and first.index.shape[1] > 1):  # an axis of a product
            grouped = len(tensors[first.name].shape) > 2
            major = many == 1 and bool((first.index[0].diff() == 1).float().mean() > 0.5)  # its rows lie together
            suffix = ("groups" if grouped else "heads") if major else ("group_width" if grouped else "head_dim")
            name, mark = f"{name}/{suffix}", f"{name}/{suffix}"
        else:
            mark = name
        seen[mark] += 1
        names.append(name if seen[mark] == 1 else f"{name}#{seen[mark]}")
    return names


def _operator(tracer: Tracer, i: int, axes: Axes, batch: int) -> Operator:
    call = tracer.calls[i]
    macs = None
    if call.macs:
        scaled = [(axes(dim), len(dim.labels)) for dim in call.scaled if dim.labels is not None]
        size = 1
        for axis, n in scaled:
            size *= n if axis is not None else 1
        macs = Cost(call.macs / batch / size, tuple(axis for axis, _ in scaled if axis is not None))
    facts = []
    for fact in call.facts:
        axis = axes(fact.dim)
        if axis is not None:
            facts.append(IntFact(fact.path, fact.value, axis, fact.rows))
    return Operator(
        call.name,
        call.module,
        tuple(call.reads),
        tuple(call.writes),
        tuple(call.parameters),
        tuple(call.shapes),
        tuple(tuple(axes(dim) for dim in dims) for dims in call.dims),
        macs,
        tuple(facts),
        tuple(dict.fromkeys(a for a in map(axes, call.over) if a is not None)),
        tuple(dict.fromkeys(a for a in map(axes, call.contracted) if a is not None)),
        tuple(tuple(axes(dim) for dim in dims) for dims in call.operands),
        call.decided,
        call.computed,
        tracer.uses.named(call.weights),
    )


def _fixed(tracer: Tracer, places: dict[tuple[str, int], Atoms]) -> tuple[Fixed, ...]:
    """Producing dimensions of which something cannot be cut, and the first reason met; and operators without a rule."""
    out = []
    for (name, d), resolved in places.items():
        role, _ = tracer.roles.get((name, d), ("other", 0))
        dim = tracer.initial[name][d]
        lost = np.logical_and.reduce(resolved < 0, axis=1)
        if role not in ("out", "depthwise", "index") or not lost.any() or dim.labels is None:
            continue
        what = name.removesuffix(".weight")
        out.append(Fixed(f"{what}: {int(lost.sum())} of {len(lost)} channels", _why(tracer, dim.labels[lost])))
    out += [Fixed(f"operator {name}", why) for name, why in tracer.unknown.items()]
    return tuple(out)


def _why(tracer: Tracer, labels: Atoms) -> str:
    """The reason why these atoms are fixed: of what they are made of, that which was given last."""
    labels_of = tracer.labels
    roots, last = labels_of.find(labels.ravel()), 0
    for _ in range(4):
        roots = roots[roots >= 0]
        last = max(last, int(labels_of.why[roots].max(initial=0)))
        roots = labels_of.find(labels_of.parts[roots].ravel())
    return labels_of.reasons[last - 1] if last else "it cannot be cut"
