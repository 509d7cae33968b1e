"""The traced network: its groups, its operators, and what any plan of it costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from prunus.core.checks import a_flag, a_text, check_arguments
from prunus.core.effective import Effective
from prunus.core.errors import InputError, UnknownNameError, did_you_mean
from prunus.core.inputs import Inputs
from prunus.core.operators import EditRule, Fixed, Fold, Operator, TensorAxes
from prunus.core.parts import Edit, GroupPlan, TensorPlan
from prunus.core.plan import Plan
from prunus.core.proportions import check_counts, check_mask, out_of_proportion, quanta_of
from prunus.core.slices import Group, Slice

COSTS = ("params", "macs")


@dataclass(frozen=True, eq=False)
class Groups(Sequence[Group]):
    """All groups of a traced network, its operators, and what they cost.

    Index by position or by group id; ``costs`` tells what a set of kept units costs before anything is cut.

    `members` are the groups, `axes` every distinct labelled dimension as an ``(n, k)`` matrix of flat unit numbers, -1
    for "always kept": row ``i`` survives a plan iff all its units do.  `tensors` are parameters and buffers by name,
    `operators` calls of ATen in order, `starts` the first of every call of the network, `outputs` the numbers of the
    tensors it returns, `inputs` what it was traced with, `fixed` what is not cut and why, `ties` names of one tensor,
    `edits` integers that follow, `folds` scales that are made good, `proportions` ids of groups whose kept counts stay
    in the ratio of their units, `counted` axes that tell how many rows stay, not which, `caches` module and attribute
    of what forward caches, `effective` weights that it computes from parameters (None: it computes none).  `in_place`
    (True by default) says whether a cut has to fit the model's own code, `weights` (False) whether units are single
    weights or blocks of them; `least`, in [0, 1], is the share of a group's units that stays by default (0.01).
    """

    members: tuple[Group, ...]
    axes: tuple[Tensor, ...]
    tensors: Mapping[str, TensorAxes]
    operators: tuple[Operator, ...]
    fixed: tuple[Fixed, ...]
    inputs: Inputs
    ties: tuple[tuple[str, ...], ...] = ()
    edits: tuple[EditRule, ...] = ()
    outputs: tuple[int, ...] = ()
    in_place: bool = True
    proportions: tuple[tuple[str, ...], ...] = ()
    folds: tuple[Fold, ...] = ()
    counted: frozenset[int] = frozenset()
    caches: tuple[tuple[str, str], ...] = ()
    least: float = 0.01
    effective: Effective | None = None
    weights: bool = False
    starts: tuple[int, ...] = (0,)

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Group]:
        return iter(self.members)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key in self._by_id:
                return self._by_id[key]
            ids = [group.id for group in self.members]
            raise UnknownNameError(f"there is no group '{key}'.{did_you_mean(key, ids)} See: prunus groups.")
        return self.members[key]

    @cached_property
    def _by_id(self) -> dict[str, Group]:
        return {group.id: group for group in self.members}

    @cached_property
    def factors(self) -> dict[str, int]:
        """Per group, the most groups (itself among them) whose units are multiplied in one dimension of a tensor."""
        of = torch.repeat_interleave(torch.arange(len(self)), torch.tensor([g.units for g in self], dtype=torch.long))
        out = [1] * len(self)
        for i in {axis for tensor in self.tensors.values() for axis in tensor.axes if axis is not None}:
            matrix = self.axes[i]
            family = torch.where(matrix < 0, -1, of[matrix.clamp(min=0)]) if len(of) else matrix
            for row in family.unique(dim=0) if matrix.shape[1] > 1 else ():
                together = set(row[row >= 0].tolist())
                for member in together:
                    out[member] = max(out[member], len(together))
        return {group.id: n for group, n in zip(self, out)}

    @property
    def units(self) -> int:
        """The number of units of all groups: the length of a keep mask."""
        return sum(group.units for group in self.members)

    def of_calls(self, calls: Iterable[int]) -> list[int]:
        """The numbers of the operators of these calls of the network, in order."""
        ends = (*self.starts[1:], len(self.operators))
        return [number for call in calls for number in range(self.starts[call], ends[call])]

    # ---- what a plan costs, before it is cut -------------------------------------------------------------------

    def alive(self, keep: Tensor) -> list[Tensor]:
        """Per axis, which rows survive: boolean ``(n,)``, given the keep mask ``(units,)`` (True = keep)."""
        padded = torch.cat([keep.bool().cpu(), torch.ones(1, dtype=torch.bool)])  # label -1 reads the last: kept
        return [padded[axis].all(1) for axis in self.axes]

    def costs(self, keep: Tensor | None = None) -> dict[str, int]:
        """``{"params": ..., "macs": ...}`` (macs per sample) of the network with the units of `keep` left.

        >>> import prunus, torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(8, 2, 1))
        >>> groups = prunus.trace(net, torch.zeros(1, 3, 4, 4))
        >>> groups.costs(), groups.costs(torch.arange(8) < 4)
        ({'params': 50, 'macs': 640}, {'params': 26, 'macs': 320})
        """
        keep = torch.ones(self.units, dtype=torch.bool) if keep is None else keep
        check_mask(self.units, keep)
        counts = [int(rows.sum()) for rows in self.alive(keep)]
        params = 0
        for tensor in self.tensors.values():
            if tensor.parameter:
                size = 1
                for n, axis in zip(tensor.shape, tensor.axes):
                    size *= n if axis is None else counts[axis]
                params += size
        macs = 0.0
        for op in self.operators:
            if op.macs is not None:
                term = op.macs.coefficient
                for axis in op.macs.axes:
                    term *= counts[axis]
                macs += term
        return {"params": params, "macs": round(macs)}

    def costs_of_counts(self, counts: Mapping[str, int]) -> dict[str, int]:
        """What it costs when `counts` units of each group stay; `InputError` where it matters which ones do."""
        raise InputError("what this network costs depends on which units stay: give costs() a keep mask.")

    def kept_rows(self, alive: list[Tensor], axis: int, rows: tuple[int, int] | None) -> int:
        """How many rows of an axis (within `rows`) survive, given `alive`."""
        kept = alive[axis] if rows is None else alive[axis][rows[0] : rows[1]]
        return int(kept.sum())

    def edit(self, rule: EditRule, keep: Tensor, alive: list[Tensor]) -> Fraction:
        """The value that `rule` gives an integer of the model under the mask `keep`, of which `alive` was made."""
        total = Fraction(0)
        for term in rule.terms:
            value = term.coefficient
            for id, power in term.groups:
                value *= self._kept(keep, id) ** power
            for axis, rows, power in term.axes:
                value *= Fraction(self.kept_rows(alive, axis, rows)) ** power
            total += value
        return total

    def _kept(self, keep: Tensor, id: str) -> Fraction:
        """Kept units of a part of a group."""
        group = self[id]
        return Fraction(int(keep[group.offset : group.offset + group.units].sum()), group.parts)

    def quanta(self, ids: Sequence[str]) -> tuple[int, ...]:
        """The units that groups `ids` in proportion lose together in one step (192 channels and 3 heads: 64 and 1).

        So many that what stays of each is a multiple of its `step`.
        """
        return quanta_of([self[id].count for id in ids], [self[id].step for id in ids])

    # ---- keep masks and plans ----------------------------------------------------------------------------------

    def plan(self, keep: Tensor) -> Plan:
        """The plan that keeps the units marked True in `keep`, a boolean ``(units,)`` over all groups in order.

        Raises: `InputError` for a mask of another shape or type, or one that leaves groups out of proportion.
        """
        check_mask(self.units, keep)
        self.check_proportions(keep)
        alive = self.alive(keep)
        groups = {}
        for group in self.members:
            rows = keep[group.offset : group.offset + group.units]
            groups[group.id] = GroupPlan(group.units, tuple(rows.nonzero().flatten().tolist()))
        rows_of = [None if bool(rows.all()) else tuple(rows.nonzero().flatten().tolist()) for rows in alive]
        tensors = {}
        for name, tensor in self.tensors.items():
            kept = {d: found for d, a in enumerate(tensor.axes) if a is not None and (found := rows_of[a]) is not None}
            if kept:
                tensors[name] = TensorPlan(tensor.shape, kept)
        edits = []
        for rule in self.edits:
            new = self.edit(rule, keep, alive)
            if new.denominator != 1:
                raise out_of_proportion(
                    f"{rule.module}.{rule.attribute} would be {new}", self.members, self.proportions
                )
            if new != rule.value:
                edits.append(Edit(rule.module, rule.attribute, rule.value, int(new)))
        return Plan(
            groups=groups, tensors=tensors, edits=tuple(edits), ties=self.ties, inputs=tuple(self.inputs.signature())
        )

    def check_proportions(self, keep: Tensor) -> None:
        """Raise `InputError` when `keep` has uneven parts, or breaks a proportion that the model's code asks for."""
        check_counts(self.members, self.proportions, keep)

    def mask(self, plan: Plan) -> Tensor:
        """The keep mask ``(units,)`` of a plan; raises `InputError` when the plan is of another network."""
        check_arguments(locals())
        if plan.masks:
            raise InputError("this plan masks weights and cuts no units: carry it out by prunus.mask_.")
        keep = torch.ones(self.units, dtype=torch.bool)
        for id, entry in plan.groups.items():
            group = self[id]
            if entry.units != group.units:
                raise InputError(
                    f"the plan is of another network: group '{id}' has {group.units} units here, {entry.units} in the "
                    "plan. Trace the network again and allocate anew."
                )
            if entry.kept and not 0 <= min(entry.kept) <= max(entry.kept) < group.units:
                raise InputError(f"the plan keeps units outside 0..{group.units - 1} of group '{id}'.")
            rows = torch.zeros(group.units, dtype=torch.bool)
            rows[list(entry.kept)] = True
            keep[group.offset : group.offset + group.units] = rows
        return keep

    # ---- the same groups seen otherwise ------------------------------------------------------------------------

    def select(self, ids: Iterable[str], why: str = "not among the groups selected") -> Groups:
        """The same network where only the groups `ids` may be cut; the others are held whole, with the reason `why`.

        Groups in proportion are held whole with each other.
        """
        check_arguments(locals(), why=a_text)
        wanted = {self[id].id for id in ids}
        for tied in self.proportions:
            if not wanted.issuperset(tied):
                wanted.difference_update(tied)
        number = torch.full((self.units + 1,), -1, dtype=torch.long)
        members, offset = [], 0
        for group in self.members:
            if group.id in wanted:
                number[group.offset : group.offset + group.units] = torch.arange(offset, offset + group.units)
                members.append(replace(group, offset=offset))
                offset += group.units
        fixed = self.fixed + tuple(Fixed(g.id, why) for g in self.members if g.id not in wanted)
        whole = {g.id: g.count for g in self.members if g.id not in wanted}
        return replace(
            self,
            members=tuple(members),
            axes=tuple(number[a] for a in self.axes),
            fixed=fixed,
            edits=tuple(replace(e, terms=tuple(t.held(whole) for t in e.terms)) for e in self.edits),
            proportions=tuple(tied for tied in self.proportions if wanted.issuperset(tied)),
            folds=tuple(fold for fold in self.folds if fold.group in wanted),
        )

    def without(self, ids: Iterable[str], why: str) -> Groups:
        """The same network where the groups `ids` (as far as there are such) may not be cut, with the reason `why`."""
        check_arguments(locals(), why=a_text)
        spared = set(ids)
        return self.select([g.id for g in self if g.id not in spared], why) if spared else self

    def seen(self, *, values: bool = True) -> Groups:
        """The same groups with the slices that layers read, effective weights for the parameters they are computed of.

        For what looks at weights; what changes them takes `slices` as they are.  Without `values`, shapes alone.

        >>> import prunus, torch
        >>> layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 3))
        >>> group, = prunus.trace(torch.nn.Sequential(layer, torch.nn.Linear(3, 1)), torch.zeros(1, 2)).seen()
        >>> [(s.name, s.role) for s in group.slices]
        [('0:weight', 'out'), ('0.bias', 'bias'), ('1.weight', 'in')]
        """
        check_arguments(locals(), values=a_flag)
        if self.effective is None or all(g.used is None for g in self):
            return self
        found = self.effective.values() if values else {}
        members = (
            g if g.used is None
            else replace(g, used=None, slices=tuple(replace(s, tensor=found.get(s.name, s.tensor)) for s in g.used))
            for g in self.members
        )  # fmt: skip
        return replace(self, members=tuple(members))

    def bind(self, model: nn.Module) -> Groups:
        """The same groups over the parameters and buffers of `model`, another copy of the traced network.

        Raises: `InputError` when a tensor of a group has another shape there.
        """
        check_arguments(locals())
        tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(
            model.named_buffers(remove_duplicate=False)
        )
        slices = [s for g in self.members for s in g.slices]
        if wrong := [s for s in slices if s.name in tensors and tensors[s.name].shape != s.tensor.shape]:
            shapes = f"{tuple(wrong[0].tensor.shape)} in them, {tuple(tensors[wrong[0].name].shape)} here"
            raise InputError(f"the groups are of another network: '{wrong[0].name}' is {shapes}. Trace this model.")

        def bound(slices: tuple[Slice, ...]) -> tuple[Slice, ...]:
            return tuple(replace(s, tensor=tensors.get(s.name, s.tensor)) for s in slices)

        members = tuple(
            replace(g, slices=bound(g.slices), used=None if g.used is None else bound(g.used)) for g in self.members
        )
        return replace(self, members=members, effective=self.effective and self.effective.bind(model))

    def __repr__(self) -> str:
        cost = self.costs()
        rows = [f"{len(self)} groups, {self.units} units, {cost['params']:,} params, {cost['macs']:,} MACs"]
        rows += [f"  {g.id}: {g.units} units, {', '.join(s.name for s in g.slices)}" for g in self.members]
        return "\n".join(rows)
