"""How units come from the layers that make them to those that read them: what lies in series, and what side by side.

A unit goes when what layers read of it is zero.  The multiplier that would say so, its gate, may stand at any place
that all of the unit goes through once: behind the convolution that makes it, the norm, the depthwise kernel, or at the
weights that read it.  Slices in series hold the same gate, and so do the factors of a product (a gated feed-forward,
query and key); parts of a sum, and layers that read a unit, hold one each, which together are the whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.core.groups import Groups
from prunus.core.operators import Operator
from prunus.core.slices import Group, Slice

PRODUCTS = {"mul", "mul_", "div", "div_", "addcmul", "addcmul_", "bmm", "baddbmm", "mm", "addmm"}
OF_ITSELF = {"glu", "pow", "pow_"}  # products of what goes in with itself
SHIFTS = ("bias", "norm_shift")  # what is added to what a weight or a scale makes


@dataclass(frozen=True, eq=False)
class Stage:
    """What one operator makes of units by its slices, and the stages right before it, by the numbers of operators."""

    slices: tuple[Slice, ...]
    before: frozenset[int]


@dataclass(frozen=True, eq=False)
class End:
    """An operator that reads units: the last stages before it, all before it, and the slices that read.

    What it reads goes with the gate of a unit to the power of `degree`.
    """

    operator: int
    stages: frozenset[int]
    above: frozenset[int]
    degree: int
    slices: tuple[Slice, ...]


@dataclass(frozen=True, eq=False)
class Flow:
    """A tensor that carries units: the last stages before it, all before it, and the power of the gate in it."""

    stages: frozenset[int] = frozenset()
    above: frozenset[int] = frozenset()
    degree: int = 1


class Series:
    """The stages of a group, by the number of the operator, and its ends; of the slices with some `roles` alone.

    A group of which the operators are not known, or are read by none, has no ends.
    """

    def __init__(self, groups: Groups, group: Group, roles: Iterable[str]) -> None:
        self.roles = frozenset(roles)
        self.slices = group.slices
        self.stages: dict[int, Stage] = {}
        ends: list[End] = []
        way = Way(groups, group)
        flows: dict[int, Flow] = {}
        for i, op in way.operators:
            given = [flows[n] for n in op.reads if n in flows]
            passes = way.passes(op)
            if given and not passes:
                taken = joined(given, product=True)
                into = tuple(s for s in way.read_by(op) if s.role in self.roles)
                ends.append(End(i, taken.stages, taken.above, taken.degree, into))
            if way.writes(op):
                given = (given * 2 if op.name in OF_ITSELF else given) if passes else []
                made = self._made(i, op, joined(given, product=multiplies(op)), way)
                flows.update({n: made for n, axes in zip(op.writes, op.axes) if way.on(axes)})
        layers = [end for end in ends if groups.operators[end.operator].macs is not None]
        reading = [end for end in layers if end.slices]
        self.ends = tuple(layers or ends)  # what only looks at units, such as a mean over them, is no reader
        self.counted = tuple(reading) or self.ends  # a product with other units counts where no weight reads them

    def _made(self, i: int, op: Operator, given: Flow, way: Way) -> Flow:
        """What comes out of an operator that units go through, or begin at."""
        own = [s for name in op.weights for s in way.slices_of(name) if s.role not in ("in", "stat")]
        if given.stages:  # a kernel for every channel alone gives the gate on, and adds its bias
            own = [s for s in own if s.role != "depthwise"]
        counted = tuple(s for s in own if s.role in self.roles)
        lead = [s for s in own if s.role not in SHIFTS]
        if any(s.role == "other" for s in own) and not multiplies(op):
            return Flow(frozenset(), given.above, given.degree)  # a part of a sum that no slice counts for: positions
        if not counted or not all(s.role in self.roles for s in lead):
            return given
        here = frozenset({i})
        self.stages[i] = Stage(counted, given.stages if lead else frozenset())
        if lead:
            return Flow(here, given.above | here)
        return Flow(given.stages | here, given.above | here, given.degree)  # a bias that is added is a part of the sum

    def once(self) -> dict[Slice, float]:
        """Slices that together hold the gate of a unit once, and the share with which each of them counts.

        At every end: the last stages before it; the slices that read, where something multiplies units with each other
        on the way, or where a stage before it has another way to an end that does not count it.  Where two factors are
        read by no weight (query and key), each counts half.  Of a group without ends, all slices but those that read.
        """
        settled = self._settled()
        found: dict[Slice, float] = {}
        for end in self.counted:
            slices = [s for i in end.stages for s in self.stages[i].slices] if end in settled else end.slices
            found.update(dict.fromkeys(slices, 1 / end.degree if end in settled else 1.0))
        return {s: found[s] for s in self.slices if s in found} or self._made_by()

    def places(self) -> dict[int, float]:
        """The operators behind which the gate stands, where it does not stand at the weights that read, and shares."""
        settled = self._settled()
        return {i: 1 / end.degree for end in settled for i in end.stages} or dict.fromkeys(self.stages, 1.0)

    def _made_by(self) -> dict[Slice, float]:
        return {s: 1.0 for s in self.slices if s.role in self.roles and s.role != "in"}

    def _settled(self) -> list[End]:
        """The ends whose gate is that of the stages before them."""
        left = [end for end in self.counted if end.stages and (end.degree == 1 or not end.slices)]

        def torn(end: End) -> bool:
            others = [other for other in self.ends if end.stages & other.above]
            return any(other not in left or not end.stages & other.above <= other.stages for other in others)

        while wrong := [end for end in left if end.slices and torn(end)]:
            left = [end for end in left if end not in wrong]
        return left

    def path(self, terms: Mapping[Slice, Tensor]) -> Tensor:
        """Terms of slices, each ``(units,)``, along the way: the product of those in series, the largest side by side.

        Of a group without ends, the largest of all.
        """
        found: dict[int, Tensor] = {}
        for i, stage in self.stages.items():  # in the order of execution
            own = torch.stack([terms[s] for s in stage.slices]).amax(0)
            before = [found[k] for k in stage.before]
            found[i] = own * torch.stack(before).amax(0) if before else own
        last = [found[i] for i in frozenset[int]().union(*(end.stages for end in self.ends))]
        return torch.stack(last or list(terms.values())).amax(0)


class Way:
    """The operators that the units of a group come through, in order, and what each does with them."""

    def __init__(self, groups: Groups, group: Group) -> None:
        self.first, self.last = group.offset, group.offset + group.units
        self._groups, self._axes, self._named = groups, dict[int, bool](), dict[str, list[Slice]]()
        for s in group.slices:
            self._named.setdefault(s.name, []).append(s)

    @property
    def operators(self) -> Iterator[tuple[int, Operator]]:
        """Those that data go through."""
        return ((i, op) for i, op in enumerate(self._groups.operators) if not op.computed)

    def on(self, axes: Iterable[int | None]) -> bool:
        """Whether one of some axes holds units of the group."""
        return any(self._holds(axis) for axis in axes if axis is not None)

    def _holds(self, axis: int) -> bool:
        if axis not in self._axes:
            units = self._groups.axes[axis]
            self._axes[axis] = bool(((units >= self.first) & (units < self.last)).any())
        return self._axes[axis]

    def slices_of(self, name: str) -> list[Slice]:
        """The group's slices of a tensor."""
        return self._named.get(name, [])

    def read_by(self, op: Operator) -> list[Slice]:
        """The slices with which an operator sums over the units."""
        return [s for name in op.weights for s in self.slices_of(name) if s.role == "in"]

    def writes(self, op: Operator) -> bool:
        """Whether a result has a dimension of the units."""
        return any(self.on(axes) for axes in op.axes)

    def passes(self, op: Operator) -> bool:
        """Whether the units that go into an operator come out of it, and are not summed over."""
        return self.writes(op) and not self.on(op.contracted) and not self.read_by(op)


def once(groups: Groups, group: Group, roles: Iterable[str]) -> tuple[list[Slice], list[float]]:
    """The slices of a group that hold the gate of a unit once, and their shares; single weights are their own gates."""
    if groups.weights:
        found = dict.fromkeys(group.with_role(*(role for role in roles if role != "in")), 1.0)
    else:
        found = Series(groups, group, roles).once()
    return list(found), list(found.values())


def joined(flows: list[Flow], *, product: bool) -> Flow:
    """What several tensors together give: their product, or else their sum, or one beside the other.

    A sum has no last stages where one of its parts has none: they would not hold the whole gate.

    >>> one, two = Flow(frozenset({1}), frozenset({1})), Flow(frozenset({2}), frozenset({0, 2}))
    >>> joined([one, two], product=True).degree, sorted(joined([one, two], product=False).above)
    (2, [0, 1, 2])
    >>> joined([one, Flow()], product=False).stages
    frozenset()
    """
    none, degrees = frozenset[int](), [f.degree for f in flows] or [1]
    stages = none.union(*(f.stages for f in flows)) if product or all(f.stages for f in flows) else none
    return Flow(stages, none.union(*(f.above for f in flows)), sum(degrees) if product else max(degrees))


def multiplies(op: Operator) -> bool:
    """Whether an operator multiplies the tensors that go into it, or one with itself."""
    return op.name in PRODUCTS | OF_ITSELF or op.name.startswith("_scaled_dot_product")
