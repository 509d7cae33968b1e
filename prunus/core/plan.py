"""The plan: which units of every group stay, as data."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from prunus.core.checks import a_text, check_arguments, instance, some_names
from prunus.core.errors import FileError, InputError
from prunus.core.fields import LONG, entries, indices, items, parsed, record, shape, shown, text, whole
from prunus.core.parts import Added, Dropped, Edit, GroupPlan, Mask, Scaled, TensorPlan

FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """The kept units of every group, and what that means for every tensor and attribute, in ORIGINAL coordinates.

    A plan is data: `to_json` and `from_json` are inverse, and a person can read and edit it.  A mask plan, of
    `prunus.tensors`, has `masks` alone: a tensor's name and which of its elements stay.  `scaled` is for copies of the
    network as it was before this very cut (`prunus.follow_`); files, which hold the weights, and later plans drop it.

    Attributes:
        groups: the kept units of every group, by id; {} of a mask plan.
        tensors: the kept indices of every parameter and buffer that is cut, by qualified name.
        edits: integers of modules that follow, in the order of the modules.
        added: tensors that the original does not have.
        dropped: residual blocks that are gone.
        ties: sets of names that stand for one tensor.
        inputs: shape and type of every tensor that the network was traced with; () where that is not known.
        memory_format: of the traced parameters, ``"contiguous"`` or ``"channels_last"``.
        version: of prunus, where a file was written; "" before.

    >>> plan = Plan({"conv1": GroupPlan(4, (0, 2))})
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    groups: Mapping[str, GroupPlan] = field(default_factory=dict)
    tensors: Mapping[str, TensorPlan] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()
    added: tuple[Added, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()
    inputs: tuple[Mapping[str, Any], ...] = ()
    memory_format: str = "contiguous"
    version: str = ""
    masks: Mapping[str, Mask] = field(default_factory=dict)
    scaled: tuple[Scaled, ...] = ()

    def then(self, later: Plan) -> Plan:
        """The two cuts as one: `later` was made on the network that this plan left, the result is on the original.

        Raises: `InputError` when `later` was made on a network of other shapes.

        >>> a = Plan({"c": GroupPlan(4, (0, 2, 3))}, {"c.weight": TensorPlan((4, 3), {0: (0, 2, 3)})})
        >>> b = Plan({"c": GroupPlan(3, (1,))}, {"c.weight": TensorPlan((3, 3), {0: (1,)})})
        >>> a.then(b).tensors["c.weight"].kept
        {0: (2,)}
        """
        check_arguments(locals(), later=instance("a prunus.Plan", Plan))
        self = self.without([d.module for d in later.dropped])
        groups = dict(self.groups)
        for id, entry in later.groups.items():
            first = groups.get(id)
            if first is None:
                groups[id] = entry
            elif len(first.kept) == entry.units:
                groups[id] = GroupPlan(first.units, tuple(first.kept[i] for i in entry.kept))
            else:  # the first cut made other units couple: only the tensors tell what is left
                del groups[id]
        tensors = dict(self.tensors)
        for name, cut in later.tensors.items():
            first_cut = tensors.get(name, TensorPlan(cut.shape, {}))
            if first_cut.left != cut.shape:
                raise InputError(
                    f"plans do not follow each other: '{name}' is {first_cut.left} after the first, the next one "
                    "is made for "
                    f"{cut.shape}."
                )
            kept = dict(first_cut.kept)
            for dim, rows in cut.kept.items():
                kept[dim] = tuple(kept[dim][i] for i in rows) if dim in kept else rows
            tensors[name] = TensorPlan(first_cut.shape, kept)
        edits = {(e.module, e.attribute): e for e in self.edits}
        for e in later.edits:
            first_edit = edits.get((e.module, e.attribute))
            edits[e.module, e.attribute] = replace(e, old=first_edit.old) if first_edit else e
        return replace(
            later,
            groups=groups,
            tensors=tensors,
            edits=tuple(edits.values()),
            added=self.added + later.added,
            dropped=self.dropped + later.dropped,
            ties=self.ties or later.ties,
            inputs=self.inputs or later.inputs,
            scaled=(),
        )

    def without(self, modules: Iterable[str]) -> Plan:
        """The plan with no word of what is under `modules`, which are gone."""
        check_arguments(locals(), modules=some_names)
        under = tuple(f"{module}." for module in modules)
        return replace(
            self,
            groups={k: g for k, g in self.groups.items() if not k.startswith(under)},
            tensors={k: t for k, t in self.tensors.items() if not k.startswith(under)},
            edits=tuple(e for e in self.edits if not f"{e.module}.".startswith(under)),
            added=tuple(a for a in self.added if not a.name.startswith(under)),
            dropped=tuple(d for d in self.dropped if not d.module.startswith(under)),
        )

    @property
    def identity(self) -> bool:
        """Whether the plan removes nothing."""
        whole = all(bool(mask.keep.all()) for mask in self.masks.values()) and not self.tensors and not self.dropped
        return whole and all(len(g.kept) == g.units for g in self.groups.values())

    def to_json(self) -> str:
        """The plan as JSON text."""
        data = asdict(self)
        for rare in ("dropped", "scaled"):
            if not data[rare]:
                del data[rare]  # files of networks without it stay readable by every version
        data["format"] = FORMAT
        return json.dumps(data, sort_keys=True)

    @classmethod
    def from_json(cls, json: str) -> Plan:
        """Read a plan; raises `FileError` when `json` is no text of one: every field has its type and bounds."""
        check_arguments(locals(), json=a_text)
        try:
            return cls(**_fields(parsed(json)))
        except (ValueError, TypeError) as error:
            if isinstance(error, FileError):
                raise
            raise FileError(f"this is not a plan that prunus wrote ({str(error)[:300]}).") from None


# ---- JSON that somebody else may have written ----------------------------------------------------------------------

_NEEDED = ("format", "groups", "tensors", "edits", "added", "ties", "inputs", "memory_format", "version")
_PLACE = re.compile(r"(?!_)\w+(\[\d{1,4}\]|\.(?!_)\w+)?")  # what tracing writes, see core/places.py
_LETTERS = re.compile(r"[A-Za-z0-9+/]*={0,2}")
INTEGER = 1 << 31  # attributes are below
TUPLE = 64  # what a block gives, at most
DTYPES = ("float16", "bfloat16", "float32", "float64", "int64")


def _fields(data: Any) -> dict[str, Any]:
    """The fields of a plan; raises `ValueError`, or `FileError` for another format."""
    if entries(data).get("format") != FORMAT:
        raise FileError(f"the plan has another format than {FORMAT}; it was written by another prunus.")
    record(data, _NEEDED, ("dropped", "masks", "scaled"))
    edits = tuple(map(_edit, items(data["edits"])))
    added = tuple(map(_added, items(data["added"])))
    dropped = tuple(map(_dropped, items(data.get("dropped", []))))
    for what, names in (
        ("edit", [(e.module, e.attribute) for e in edits]),
        ("added tensor", [a.name for a in added]),
        ("dropped block", [d.module for d in dropped]),
    ):
        if len(set(names)) < len(names):
            raise ValueError(f"it names an {what} twice")
    return {
        "groups": {text(k): _group(v) for k, v in entries(data["groups"]).items()},
        "tensors": {text(k): _tensor(v) for k, v in entries(data["tensors"]).items()},
        "edits": edits,
        "added": added,
        "dropped": dropped,
        "ties": tuple(tuple(map(text, items(tie))) for tie in items(data["ties"])),
        "inputs": tuple(map(_input, items(data["inputs"]))),
        "memory_format": text(data["memory_format"], ("contiguous", "channels_last")),
        "version": text(data["version"]),
        "masks": {text(k): _mask(v) for k, v in entries(data.get("masks", {})).items()},
        "scaled": tuple(map(_scaled, items(data.get("scaled", [])))),
    }


def _group(data: Any) -> GroupPlan:
    units = whole(record(data, ("units", "kept"))["units"])
    return GroupPlan(units, indices(data["kept"], units))


def _tensor(data: Any) -> TensorPlan:
    sizes = shape(record(data, ("shape", "kept"))["shape"])
    kept = {}
    for d, of in entries(data["kept"]).items():
        if d not in map(str, range(len(sizes))):
            raise ValueError(f"a tensor of shape {sizes} has no dimension {shown(d)}")
        kept[int(d)] = indices(of, sizes[int(d)])
    return TensorPlan(sizes, kept)


def _edit(data: Any) -> Edit:
    record(data, ("module", "attribute", "old", "new"))
    if not _PLACE.fullmatch(text(data["attribute"])):
        raise ValueError(f"no cut edits an attribute {shown(data['attribute'])}")
    old, new = (whole(data[key], 1, INTEGER) for key in ("old", "new"))
    return Edit(text(data["module"]), data["attribute"], old, new)


def _added(data: Any) -> Added:
    record(data, ("name", "kind", "shape"), ("dtype",))
    kind, dtype = text(data["kind"], ("bias", "select")), text(data.get("dtype", "float32"), DTYPES)
    sizes = shape(data["shape"])
    if len(sizes) != 1 or (dtype == "int64") != (kind == "select"):
        raise ValueError(f"no cut adds a {kind} of shape {sizes} and type {dtype}")
    return Added(text(data["name"]), kind, sizes, dtype)


def _dropped(data: Any) -> Dropped:
    record(data, ("module",), ("given", "length"))
    if not text(data["module"]):
        raise ValueError("the whole network cannot be dropped")
    return Dropped(data["module"], text(data.get("given", "")), whole(data.get("length", 0), high=TUPLE))


def _input(data: Any) -> dict[str, Any]:
    record(data, ("shape", "dtype"))
    return {"shape": list(shape(data["shape"])), "dtype": text(data["dtype"])}


def _scaled(data: Any) -> Scaled:
    record(data, ("name", "dim", "rows", "factor"))
    rows = tuple(whole(row) for row in items(data["rows"]))
    if type(data["factor"]) is not float or not math.isfinite(data["factor"]):
        raise ValueError(f"expected a finite number, given {shown(data['factor'])}")
    return Scaled(text(data["name"]), whole(data["dim"], high=TUPLE), rows, data["factor"])


def _mask(data: Any) -> Mask:
    sizes = shape(record(data, ("shape", "bits"))["shape"])
    bits = text(data["bits"], longest=LONG)
    if not _LETTERS.fullmatch(bits) or len(bits) != -(-math.prod(sizes) // 24) * 4:  # three bytes are four letters
        raise ValueError(f"a mask of shape {sizes} holds {len(bits)} letters of bits")
    return Mask(sizes, bits)
