"""A plan in the names of the day: a plan belongs to the modules that were cut, wherever they are now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from prunus.core import Plan, TensorPlan
from prunus.core.places import integers


@dataclass(eq=False)
class Memory:
    """The plan of a network, which all of its modules hold: copies of them, and parts, take it along."""

    plan: Plan


Links = Mapping[str, tuple[Memory, str] | None]  # a module's name now -> the memory, and its name in that plan


def remembered(model: nn.Module, links: Links) -> tuple[Plan | None, dict[str, dict[str, TensorPlan]]]:
    """The plan of a network by what its modules remember; and the tensors, of those that it should have, left out.

    Of these, what stands in their places, as if it had been cut as they were (see `_Places.lost`).
    """
    memories = {id(link[0]): link[0] for link in links.values() if link is not None}
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    root, plans, lost = links[""], [], dict[str, dict[str, TensorPlan]]()
    for memory in memories.values():
        places = _Places(memory, links, model, tensors)
        plans.append(places.plan())
        if root is not None and root[0] is memory:
            lost = {n: e for n, e in places.lost.items() if n.startswith(f"{root[1]}." if root[1] else "")}
    whole = root is not None and root[1] == ""
    plans = [p for p in plans if whole or p.tensors or p.edits or p.added or p.dropped]
    plan = _together(plans) if plans else None
    return plan, {n: e for n, e in lost.items() if plan is None or n not in plan.tensors}


class _Places:
    """Where the modules of one memory are now."""

    def __init__(self, memory: Memory, links: Links, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        self.memory, self.links, self.model, self.tensors = memory, links, model, tensors
        self.now: dict[str, list[str]] = {}
        for new, link in links.items():
            if link is not None and link[0] is memory:
                self.now.setdefault(link[1], []).append(new)
        self.had = {*memory.plan.tensors, *(a.name for a in memory.plan.added)}
        self.lost: dict[str, dict[str, TensorPlan]] = {}  # cut once, nothing is known; and what stands there now

    def of(self, path: str) -> Sequence[str]:
        """The names now of a module; of one that was replaced, what stands in its place."""
        if path in self.now or not path:
            return self.now.get(path, ())
        above, _, leaf = path.rpartition(".")
        found = [f"{place}.{leaf}".lstrip(".") for place in self.of(above)]
        return [place for place in found if place in self.links and self.links[place] is None]

    def tensor(self, name: str) -> list[str]:
        """The names now of what is in the place of a tensor."""
        path, _, leaf = name.rpartition(".")
        return [f"{place}.{leaf}".lstrip(".") for place in self.of(path)]

    def plan(self) -> Plan:
        """The plan, said of these places."""
        plan = self.memory.plan
        tensors: dict[str, TensorPlan] = {}
        for name, cut in plan.tensors.items():
            found = [e for place in self.tensor(name) for e in _entries(place, cut, self.tensors)]
            tensors.update(found)
            tensors.update(e for new, _ in found if (e := self._bias(name, new, cut)) is not None)
            if not found:
                self.lost[name] = self._instead(name, cut)
        if all([old] == new for old, new in self.now.items()) and tensors == plan.tensors:
            return plan
        return replace(
            plan,
            groups={k: g for old, g in plan.groups.items() for k in self._group(old)},
            tensors=tensors,
            edits=tuple(
                replace(e, module=place)
                for e in plan.edits
                for place in self.of(e.module)
                if self._reads(place, e.attribute, e.new)
            ),
            added=tuple(replace(a, name=n) for a in plan.added for n in self.tensor(a.name) if n in self.tensors),
            dropped=tuple(replace(d, module=p) for d in plan.dropped for p in self.now.get(d.module, ())),
            ties=tuple(t for t in (tuple(n for old in tie for n in self.tensor(old)) for tie in plan.ties) if t),
        )

    def _instead(self, name: str, cut: TensorPlan) -> dict[str, TensorPlan]:
        """What stands in the place of a tensor, made for what was left of others: as wide in the dimensions cut."""
        out = {}
        for place in self.tensor(name):
            shape = tuple(self.tensors[place].shape) if place in self.tensors else ()
            if len(shape) == len(cut.shape) and all(shape[d] == len(kept) for d, kept in cut.kept.items()):
                whole = tuple(cut.shape[d] if d in cut.kept else n for d, n in enumerate(shape))
                out[place] = TensorPlan(whole, cut.kept)
        return out

    def _bias(self, name: str, new: str, cut: TensorPlan) -> tuple[str, TensorPlan] | None:
        """The entry of a bias that a layer was given since: a batch norm folded into it."""
        bias, path = f"{name.removesuffix('weight')}bias", new.rpartition(".")[0]
        at = f"{path}.bias".lstrip(".")
        if 0 not in cut.kept or bias in self.had or not name.endswith("weight") or at not in self.tensors:
            return None
        layer = isinstance(self.model.get_submodule(path), (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
        fits = layer and tuple(self.tensors[at].shape) == cut.left[:1]
        return (at, TensorPlan(cut.shape[:1], {0: cut.kept[0]})) if fits else None

    def _group(self, id: str) -> Iterable[str]:
        """The names now of a group, which is called after a module or tensor."""
        return self.of(id) if id in self.now else self.tensor(id)

    def _reads(self, place: str, attribute: str, value: int) -> bool:
        """Whether a module is the one that was cut, or has the attribute as that one had it."""
        if self.links[place] is not None:
            return True
        return dict(integers(self.model.get_submodule(place))).get(attribute) == value


def _entries(name: str, cut: TensorPlan, tensors: Mapping[str, Tensor]) -> list[tuple[str, TensorPlan]]:
    """The entries of what is in the place of a tensor: itself, or those that it is computed from."""
    if name in tensors:
        return [(name, cut)] if tuple(tensors[name].shape) == cut.left else []
    path, _, leaf = name.rpartition(".")
    own, inside = f"{name}_", f"{path}.parametrizations.{leaf}.".lstrip(".")
    parts = [n for n in tensors if (n.startswith(own) and "." not in n[len(own) :]) or n.startswith(inside)]
    return [(n, entry) for n in parts if (entry := _like(cut, tuple(tensors[n].shape))) is not None]


def _like(cut: TensorPlan, shape: tuple[int, ...]) -> TensorPlan | None:
    """How a tensor was cut from which another is computed: of the same sizes, or of one in some dimensions."""
    if len(shape) != len(cut.shape) or any(n not in (1, left) for n, left in zip(shape, cut.left)):
        return None
    whole = tuple(old if n == left else 1 for n, left, old in zip(shape, cut.left, cut.shape))
    kept = {d: k for d, k in cut.kept.items() if shape[d] == cut.left[d]}
    return TensorPlan(whole, kept) if kept else None


def _together(plans: Sequence[Plan]) -> Plan:
    """Plans of different parts of a network as one."""
    first, *others = plans
    for other in others:
        first = replace(
            first,
            groups={**first.groups, **other.groups},
            tensors={**first.tensors, **other.tensors},
            edits=first.edits + other.edits,
            added=first.added + other.added,
            dropped=first.dropped + other.dropped,
            ties=first.ties + other.ties,
        )
    return first


def still_to_do(plan: Plan, model: nn.Module, stored: Mapping[str, Tensor]) -> Plan:
    """What is left of a plan for a network in which parts are as they are after it: new heads, made for what was left.

    Of a tensor that is `stored` with its numbers only the shape has to be right, so that one of a shape between is cut
    to it, wherever; so is one that came beside a cut tensor since, such as an adapter, and was made here for the
    original.
    """
    known: dict[str, Any] = {n: tuple(t.shape) for n, t in [*model.named_parameters(), *model.named_buffers()]}
    tensors = dict(plan.tensors)
    for name, cut in plan.tensors.items():
        shape = known.get(name, cut.shape)
        if shape == cut.left:
            del tensors[name]
        elif shape != cut.shape and name in stored and _between(shape, cut):
            tensors[name] = TensorPlan(shape, {d: tuple(range(n)) for d, n in enumerate(cut.left) if n < shape[d]})
    for name, shape in known.items():
        left = tuple(stored[name].shape) if name in stored else shape
        if left != shape and (name not in tensors or tensors[name].shape != shape):
            beside = _beside(name, shape, left, plan)
            tensors |= {} if beside is None else {name: beside}
    modules = dict(model.named_modules())
    now = {path: dict(integers(modules[path])) for path in {e.module for e in plan.edits} if path in modules}
    edits = tuple(e for e in plan.edits if now.get(e.module, {}).get(e.attribute, e.old) != e.new)
    return replace(plan, tensors=tensors, edits=edits, added=tuple(a for a in plan.added if a.name not in known))


def _beside(name: str, shape: tuple[int, ...], left: tuple[int, ...], plan: Plan) -> TensorPlan | None:
    """How a tensor was made smaller with those beside it, in dimensions that have their sizes, the nearest first."""
    kept: dict[int, tuple[int, ...]] = {}
    wanted = {d: pair for d, pair in enumerate(zip(shape, left)) if pair[0] != pair[1]}
    path = name.rpartition(".")[0]
    while path and len(kept) < len(wanted):
        cuts = [cut for other, cut in plan.tensors.items() if other.startswith(f"{path}.")]
        found = {(cut.shape[d], len(rows)): rows for cut in cuts for d, rows in cut.kept.items()}
        kept = {d: found[pair] for d, pair in wanted.items() if pair in found} | kept
        path = path.rpartition(".")[0]
    return TensorPlan(shape, kept) if len(shape) == len(left) and len(kept) == len(wanted) else None


def _between(shape: tuple[int, ...], cut: TensorPlan) -> bool:
    return len(shape) == len(cut.shape) and all(a <= n <= b for a, n, b in zip(cut.left, shape, cut.shape))
