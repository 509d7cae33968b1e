"""Modules that the example does not visit (experts without a token, heads for training): what is cut must fit them too.

A module with a visited *twin* beside it (the same class with parameters of the same shapes: another expert) follows the
twin: where the twin meets the rest of the network it is cut alike, its inside is left alone.  A head that training
visits follows what it reads there.  What any other module might be given is fixed: every tensor in the forward of the
module around it whose size fits its parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from torch import nn

from prunus.core import Groups, Inputs
from prunus.core.operators import EditRule
from prunus.tracing.labels import Atoms
from prunus.tracing.tracer import Dim, Tracer
from prunus.tracing.training import follow_in_training

WHY = "the example does not visit it"
PIECES = 4  # a tensor may reach a module in that many pieces; flattened, it may be any part of a dimension


def settle(tracer: Tracer, model: nn.Module, inputs: Inputs) -> None:
    """Fix what the example does not visit, and what must not be cut because of it."""
    visited = {name for call in tracer.calls for name in call.parameters}
    names = unvisited_modules(tracer, model, visited)
    tracer.unvisited = {name: _twin(tracer, model, name, visited) for name in names}
    alone = [name for name, twin in tracer.unvisited.items() if twin is None]
    followed = follow_in_training(tracer, model, inputs, alone) if alone else set()
    for name, twin in tracer.unvisited.items():
        if twin is not None:
            _follow(tracer, name, twin)
        elif name not in followed:
            _fix_around(tracer, model, name)
    free = followed | {name for name, twin in tracer.unvisited.items() if twin is not None}
    for name, dims in tracer.initial.items():
        if name not in visited and not any(_in(name, module) for module in free):
            for dim in dims:
                tracer.fix(dim, WHY)


def unvisited_modules(tracer: Tracer, model: nn.Module, visited: set[str]) -> list[str]:
    """The outermost modules that have parameters, none of which an operator has read; never the model itself."""
    holding: set[str] = set()
    read: set[str] = set()
    for path, p in model.named_parameters(remove_duplicate=False):
        steps = path.split(".")[:-1]
        above = [".".join(steps[:n]) for n in range(1, len(steps) + 1)]
        holding.update(above)
        if tracer.names[p] in visited:
            read.update(above)
    found: list[str] = []
    for name, _ in model.named_modules():
        if name in holding and name not in read and not any(_in(name, other) for other in found):
            found.append(name)
    return found


def mirrored(tracer: Tracer, groups: Groups, edits: Iterable[EditRule]) -> tuple[EditRule, ...]:
    """The integers of unvisited modules that follow those of their twins."""
    out = []
    for name, twin in tracer.unvisited.items():
        for e in edits:
            if twin is not None and _in(e.module, twin) and not _inner(groups, name, e):
                out.append(replace(e, module=name + e.module[len(twin) :]))
    return tuple(out)


def torn(tracer: Tracer, groups: Groups, edits: Iterable[EditRule]) -> dict[int, str]:
    """Groups of twins that cannot be followed: their sizes are tied to others, inside, which stay in the unvisited."""
    number = {g.id: i for i, g in enumerate(groups)}
    fix: dict[int, str] = {}
    for name, twin in tracer.unvisited.items():
        if twin is None:
            continue
        tied = [set(ids) for ids in groups.proportions]
        tied += [_groups_of(groups, e) for e in edits if _in(e.module, twin)]
        for ids in tied:
            shared = {id for id in ids if _has(groups, id, name)}
            inside = {id for id in ids - shared if _has(groups, id, twin)}
            if shared and inside:
                why = f"'{name}', which the example does not visit, ties its size to its inside"
                fix |= {number[id]: why for id in shared}
    return fix


def _in(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _inner(groups: Groups, name: str, rule: EditRule) -> bool:
    """Whether an integer follows groups that the unvisited module has no part of."""
    return not all(_has(groups, id, name) for id in _groups_of(groups, rule))


def _groups_of(groups: Groups, rule: EditRule) -> set[str]:
    ids = {id for term in rule.terms for id, _ in term.groups}
    units = [groups.axes[axis] for term in rule.terms for axis, _, _ in term.axes]
    for g in groups:
        if any(bool(((u >= g.offset) & (u < g.offset + g.units)).any()) for u in units):
            ids.add(g.id)
    return ids


def _has(groups: Groups, id: str, module: str) -> bool:
    return any(_in(s.name, module) for s in groups[id].slices)


# ---- twins ---------------------------------------------------------------------------------------------------------


def _parts(tracer: Tracer, module: nn.Module) -> dict[str, str]:
    """Own name -> name in the model, of all parameters and buffers."""
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {own: tracer.names[t] for own, t in named}


def _twin(tracer: Tracer, model: nn.Module, name: str, visited: set[str]) -> str | None:
    """A module beside this one, of its class and shapes, whose parameters were all visited."""
    path, _, _ = name.rpartition(".")
    module = model.get_submodule(name)
    shapes = {own: tuple(p.shape) for own, p in module.named_parameters()}
    for other, candidate in model.get_submodule(path).named_children():
        found = {own: tuple(p.shape) for own, p in candidate.named_parameters()}
        seen = visited.issuperset(tracer.names[p] for p in candidate.parameters())
        if seen and type(candidate) is type(module) and found == shapes:
            return f"{path}.{other}".lstrip(".")
    return None


def _follow(tracer: Tracer, name: str, twin: str) -> None:
    """Where the twin meets the rest of the network, the module is cut alike; the rest of it is fixed."""
    labels, model = tracer.labels, tracer.model
    ours, theirs = _parts(tracer, model.get_submodule(name)), _parts(tracer, model.get_submodule(twin))
    inside = set(theirs.values())
    outside = [dim for n, dims in tracer.initial.items() if n not in inside for dim in dims]
    outside += [dim for call in tracer.calls if not _in(call.module, twin) for of in call.dims for dim in of]
    shared = _atoms(tracer, outside)
    pairs = [
        (mine, other)
        for own, n in ours.items()
        if own in theirs
        for mine, other in zip(tracer.initial[n], tracer.initial[theirs[own]])
        if mine.labels is not None and other.labels is not None
    ]
    while True:  # what shares a dimension with something shared is shared
        rest = [atoms for _, other in pairs if not np.isin(atoms := _atoms(tracer, [other]), shared).all()]
        more = [atoms for atoms in rest if np.isin(atoms, shared).any()]
        if not more:
            break
        shared = np.union1d(shared, np.concatenate(more))
    for mine, other in pairs:
        atoms = _atoms(tracer, [other])
        if atoms.size and np.isin(atoms, shared).all():
            labels.unify(mine.labels, other.labels)  # type: ignore[arg-type]
        else:
            tracer.fix(mine, WHY)
        if mine.source in tracer.roles or mine.source is None or other.source not in tracer.roles:
            continue
        tracer.roles[mine.source] = tracer.roles[other.source]


def _atoms(tracer: Tracer, dims: Iterable[Dim]) -> Atoms:
    """The free atoms that dimensions are made of."""
    seen: dict[int, Atoms] = {id(d.labels): d.labels for d in dims if d.labels is not None}
    found = [np.unique(tracer.labels.resolve(labels)) for labels in seen.values()]
    atoms = np.unique(np.concatenate([np.zeros(0, np.int64), *found]))
    return atoms[atoms >= 0]


# ---- modules without a twin ----------------------------------------------------------------------------------------


def _fix_around(tracer: Tracer, model: nn.Module, name: str) -> None:
    """Fix every dimension in the forward around the module, of a size that it may be made for."""
    sizes = {n for p in model.get_submodule(name).parameters() for n in p.shape if n > 1}
    around = name.rpartition(".")[0]
    while around and isinstance(model.get_submodule(around), (nn.ModuleList, nn.ModuleDict)):  # they have no forward
        around = around.rpartition(".")[0]
    seen_by: dict[int, set[str | None]] = {}
    for call in tracer.calls:
        child = _child(model, around, call.module)
        for number in (*call.reads, *call.writes):
            seen_by.setdefault(number, set()).add(child)
    outputs = set(tracer.outputs)
    for call in tracer.calls:
        for number, dims in zip(call.writes, call.dims):
            places = seen_by[number] - {None}
            if not places or (len(seen_by[number]) == 1 and "" not in places and number not in outputs):
                continue  # it never leaves a child, or never comes here
            for dim in (dim for dim in dims if dim.labels is not None):
                n = len(dim.labels)  # type: ignore[arg-type]
                if any(s % n == 0 or (n % s == 0 and n <= PIECES * s) for s in sizes):
                    tracer.fix(dim, f"'{name}', which the example does not visit, may read it")


def _child(model: nn.Module, around: str, module: str) -> str | None:
    """The module that `around` called and that `module` is in: "" for `around` itself, None for one outside of it."""
    if around and not _in(module, around):
        return None
    path = around
    for step in module[len(around) :].strip(".").split(".") if module != around else ():
        path = f"{path}.{step}".lstrip(".")
        if not isinstance(model.get_submodule(path), (nn.ModuleList, nn.ModuleDict)):
            return path
    return ""
