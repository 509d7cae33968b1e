"""What a criterion is, and how it scores every group of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from prunus.core import ELEMENTS, Entry, Fixed, Group, Groups, InputError, Registry, Slice
from prunus.core.callbacks import own
from prunus.core.checks import (
    Kind,
    a_flag,
    a_text,
    a_word,
    check_arguments,
    instance,
    one_of,
    optional,
    shown,
    some_names,
)
from prunus.core.groups import COSTS
from prunus.core.progress import progress
from prunus.core.running import has_values
from prunus.core.series import Series, once
from prunus.core.slices import ROLES
from prunus.criteria.normalize import normalizers
from prunus.observe import Stats, collectors

F = TypeVar("F", bound=Callable[..., Tensor])

Join = Callable[[Sequence[Tensor]], Tensor]  # terms of slices, each (units,) -> (units,)

KINDS = ("element", "group")
PATH = "path"  # the product of slices in series, the largest of those side by side
ACROSS: Mapping[str, Callable[[Tensor], Tensor]] = {  # (slices, units) -> (units,)
    "sum": lambda terms: terms.sum(0),
    "mean": lambda terms: terms.mean(0),
    "max": lambda terms: terms.amax(0),
}
FINISH: Mapping[str, Callable[[Tensor], Tensor]] = {  # (units,) -> (units,)
    "identity": lambda terms: terms,
    "abs": torch.abs,
    "square": torch.square,
    "sqrt": torch.sqrt,
}

some_roles = Kind(f"some of {', '.join(ROLES)}", lambda v: some_names.holds(v) and set(v) <= set(ROLES))

criteria: Registry[Callable[..., Tensor]] = Registry("criterion")


def criterion(
    name: str,
    *,
    roles: Iterable[str],
    once: bool = False,
    kind: str = "element",
    needs: Iterable[str] = (),
    across: str = "sum",
    finish: str = "identity",
    normalize: str = "none",
    per: str | None = None,
    seeded: bool = False,
    weights: str | None = None,
    paper: str = "",
) -> Callable[[F], F]:
    """Decorator: register a function as the criterion `name`; higher = keep.

    Args:
        roles: which slices of a group count (`prunus.core.slices.ROLES`); a group with none of them is left alone.
        once: whether of slices in series one alone counts, since all hold the same gate: of a convolution, its norm
            and another norm behind them the last one (`prunus.core.series`).  With ``in`` among the roles,
            the slices that read a unit count where factors of a product make it, and nowhere else.
        kind: ``"element"``: the function takes a `Slice` and returns a term per element, ``(units, fan)``;
            ``"group"``: it takes a `Group` holding only those slices and returns ``(units,)``.
        needs: the statistics it reads, as `prunus.observe.collect` names them.
        across: how the slices of a group are joined: ``sum``, ``mean``, ``max``, or ``path``, the product of those in
            series and the largest of those side by side (element kind).
        finish: what is done to the joined sum: ``identity``, ``abs``, ``square`` or ``sqrt`` (element kind).
        normalize: the normaliser used unless `score` is told another one.
        per: what the score is divided by unless `score` is told otherwise (see there).
        seeded: whether the function takes a keyword ``seed`` as well.
        weights: the normaliser where units are single weights (`prunus.tensors`): the same one for the element kind,
            unless told otherwise; a criterion of the group kind is not for weights unless it names one.
        paper: where it was published.

    Raises: `InputError` for a declaration that is none of these.
    """
    check_arguments(
        locals(),
        name=a_word,
        roles=some_roles,
        once=a_flag,
        kind=one_of(*KINDS),
        across=one_of(*ACROSS, PATH),
        finish=one_of(*FINISH),
        normalize=a_word,
        seeded=a_flag,
        weights=optional(a_word),
        paper=a_text,
    )
    if not set(roles):
        raise InputError(f"criterion '{name}' declares no roles; expected some of {', '.join(ROLES)}.")
    register: Callable[[F], F] = criteria.register(  # type: ignore[assignment]
        name,
        paper=paper,
        kind=kind,
        needs=frozenset(needs),
        roles=tuple(role for role in ROLES if role in set(roles)),
        once=once,
        across=across,
        finish=finish,
        normalize=normalizers[normalize].name,
        per=per,
        seeded=seeded,
        weights=weights or (normalize if kind == "element" else None),
    )
    return register


def score(
    groups: Groups,
    criterion: str | Callable[..., Tensor],
    stats: Stats | None = None,
    *,
    seed: int = 0,
    normalize: str | Callable[[Tensor], Tensor] | None = None,
    per: str | None = None,
) -> dict[str, Tensor]:
    r"""Score every unit of every group: ``{group id: (units,)}`` in float64 on the CPU, higher = keep.

    For an element criterion with terms $t$: $s_u = \mathrm{finish}(\mathrm{across}_{S \in G} \sum_{e} t_{S,u,e})$,
    then the normaliser.  Groups without a slice of the criterion's roles are absent: see `unscored`.  A weight that
    forward computes from parameters (masked, normalised, a piece of a packed one) is scored as layers read it.

    Args:
        criterion: a name, or the decorated function itself.
        stats: what `prunus.observe.collect` returned, for a criterion that needs it.
        seed: for criteria that draw at random.
        normalize: ``none``, ``mean``, ``max``, ``l2``, ``sum``, ``rank``, ``isomorphic`` or any function
            ``(units,) -> (units,)``; None: as the criterion declares.  Norms of weights declare ``max`` (layers of
            another fan-in are not comparable raw).
        per: ``macs`` or ``params``: divide by what the network saves of them without the unit, before a ranking of
            groups together; None: as the criterion declares.

    Raises: `UnknownNameError`; `InputError` when statistics are missing or of another network, when no group has a
    slice of the right role, or when a score is not finite.
    """
    check_arguments(locals(), stats=optional(instance("what prunus.collect returns", Stats)))
    entry, groups = criteria.find(criterion), groups.seen()
    _check_stats(entry, groups, stats)
    _check_values(entry, groups)
    if groups.weights and entry.declares["weights"] is None:
        raise InputError(
            f"criterion '{entry.name}' compares units as wholes (channels, heads); the units here are weights of "
            "prunus.tensors. Choose one of weights, e.g. 'l1', 'wanda', 'obc', or groups = prunus.trace(model, ...)."
        )
    scores = {}
    for group in progress(groups, f"scoring by {entry.name}", efforts=[_effort(group) for group in groups]):
        slices, join = _counted(groups, group, entry)
        if slices:
            found = _raw(entry, _seen(group, slices, stats), join, seed)
            if found is not None:
                scores[group.id] = _checked(found, entry, group)
    if not scores and len(groups):
        raise InputError(
            f"criterion '{entry.name}' scores none of the {len(groups)} groups, e.g. '{groups[0].id}': "
            f"{unscored(groups, scores, criterion)[0].why}. Choose another criterion, e.g. 'l2'."
        )
    kind = entry.declares["per"] if per is None else per
    worth = {id: savings(groups, groups[id], kind) if kind else 1 for id in scores}
    name = entry.declares["weights" if groups.weights else "normalize"] if normalize is None else normalize
    if isinstance(name, str) and normalizers[name].declares.get("of") == "network":
        return dict(normalizers[name].call(groups, {id: values / worth[id] for id, values in scores.items()}))
    finish = normalizers[name].call if isinstance(name, str) else own(name, "normalize=")
    return {id: _checked(finish(values), entry, groups[id]) / worth[id] for id, values in scores.items()}


def savings(groups: Groups, group: Group, kind: str) -> int:
    """What the network saves of ``macs`` or ``params`` without one unit of every part of a group, at least 1.

    Raises: `InputError` for another kind.
    """
    if kind not in COSTS:
        raise InputError(f"per='{kind}': expected one of {', '.join(COSTS)}.")
    keep = torch.ones(groups.units, dtype=torch.bool)
    keep[group.offset : group.offset + group.units : group.count] = False
    return max(groups.costs()[kind] - groups.costs(keep)[kind], 1)


def needs(criterion: str | Callable[..., Tensor]) -> frozenset[str]:
    """The statistics a criterion reads: what to ask `prunus.observe.collect` for.

    >>> sorted(needs("l2"))
    []
    """
    check_arguments(locals())
    return frozenset(criteria.find(criterion).declares["needs"])


def needed(criterion: str | Callable[..., Tensor], data: Iterable[Any] | None) -> frozenset[str]:
    """The statistics a criterion reads; raises `InputError` when it reads some of data and there are none."""
    check_arguments(locals())
    if data is None and (wanted := of_data(criterion)):
        raise InputError(f"criterion {criterion!r} looks at data ({', '.join(sorted(wanted))}): give data= batches.")
    return needs(criterion)


def of_data(criterion: str | Callable[..., Tensor]) -> frozenset[str]:
    """The statistics a criterion reads that are of data; the others are of the network alone.

    >>> sorted(needs("synflow")), sorted(of_data("synflow"))
    (['flow'], [])
    """
    check_arguments(locals())
    return frozenset(need for need in needs(criterion) if collectors[need].declares.get("data", True))


def unscored(groups: Groups, scores: Mapping[str, Tensor], criterion: str | Callable[..., Tensor]) -> tuple[Fixed, ...]:
    """The groups that `criterion` could not score, absent from `scores`, and why: allocators leave them whole."""
    check_arguments(locals())
    entry = criteria.find(criterion)
    read = f"criterion '{entry.name}' reads slices of role {' or '.join(entry.declares['roles'])}; it has none"
    needs = " and ".join(sorted(entry.declares["needs"]))
    without = "an embedding, a transposed convolution, one never called"
    seen = f"criterion '{entry.name}' reads {needs}, which not every layer of it has ({without})"
    groups = groups.seen(values=False)
    left = [group for group in groups if group.id not in scores]
    return tuple(Fixed(g.id, seen if _counted(groups, g, entry)[0] else read) for g in left)


def _effort(group: Group) -> float:
    """What scoring a group takes beside others, for a bar: matrices of a layer's inputs are what takes long."""
    return float(sum(s.tensor.numel() for s in group.slices)) ** 1.5


def _raw(entry: Entry[Callable[..., Tensor]], group: Group, join: Join, seed: int) -> Tensor | None:
    """The scores of one group before they are normalised: ``(units,)``; None where nothing was seen of it."""
    call = own(entry.call, "criterion=")
    units = {need for need in entry.declares["needs"] if collectors[need].declares.get("of") == "group"}
    weights = entry.declares["needs"] - units
    if not units <= set(group.stats) or not all(weights <= set(s.stats) for s in group.slices):
        return None
    if entry.declares["kind"] == "group":
        return call(group, seed=seed) if entry.declares["seeded"] else call(group)
    found = [call(s).flatten(1) for s in group.slices]  # (units, fan), of single weights (units, 1)
    terms = [(t.sum(1) if t.shape[1] != 1 else t[:, 0]).double().cpu() for t in found]
    return FINISH[entry.declares["finish"]](join(terms))


def _seen(group: Group, slices: Sequence[Slice], stats: Stats | None) -> Group:
    """The group with only the slices that count, in at least float32, carrying their statistics."""
    seen = []
    for s in slices:
        tensor = s.tensor.detach()
        if tensor.is_floating_point() and tensor.element_size() < 4:
            tensor = tensor.float()
        seen.append(replace(s, tensor=tensor, stats=stats.of(s.name) if stats is not None else s.stats))
    return replace(group, slices=tuple(seen), stats=stats.of_group(group.id) if stats is not None else group.stats)


def _counted(groups: Groups, group: Group, entry: Entry[Callable[..., Tensor]]) -> tuple[Sequence[Slice], Join]:
    """The slices of a group that a criterion counts, and how their terms are joined."""
    across, roles = entry.declares["across"], entry.declares["roles"]
    if "in" in roles and any(s.dim == ELEMENTS for s in group.slices):
        roles = (*roles, "out")  # a single weight, which has the role "out", belongs to an input as well
    slices: Sequence[Slice] = group.with_role(*roles)
    if across == PATH:
        return slices, lambda terms: Series(groups, group, roles).path(dict(zip(slices, terms)))
    if entry.declares["once"]:
        slices, shares = once(groups, group, roles)
        return slices, lambda terms: ACROSS[across](torch.stack([t * share for t, share in zip(terms, shares)]))
    return slices, lambda terms: ACROSS[across](torch.stack(terms)) if len(terms) > 1 else terms[0]


def _check_stats(entry: Entry[Callable[..., Tensor]], groups: Groups, stats: Stats | None) -> None:
    missing = sorted(entry.declares["needs"] - (stats.names if stats is not None else frozenset()))
    if missing:
        raise InputError(
            f"criterion '{entry.name}' needs the statistics {', '.join(missing)}. Run stats = prunus.collect(model, "
            f"groups, loader, needs={set(missing)}) and pass it to score, or give prune_ data=."
        )
    if stats is not None:
        stats.check(groups)


def _check_values(entry: Entry[Callable[..., Tensor]], groups: Groups) -> None:
    """A criterion that draws at random needs no weights; every other one does."""
    bare = next((s.name for g in groups for s in g.slices if not has_values(s.tensor)), None)
    if bare is not None and not entry.declares["seeded"]:
        raise InputError(
            f"criterion '{entry.name}' reads weights, and '{bare}' has none (it is on the meta device, or fake). Score "
            "with criterion='random', or write the plan by hand."
        )


def _checked(scores: Tensor, entry: Entry[Callable[..., Tensor]], group: Group) -> Tensor:
    """The scores in float64, if there is one finite number a unit."""
    if not isinstance(scores, Tensor):
        raise InputError(f"criterion '{entry.name}' gave {shown(scores)}; expected a tensor ({group.units},).")
    if tuple(scores.shape) != (group.units,):
        raise InputError(
            f"criterion '{entry.name}' returned shape {tuple(scores.shape)} for group '{group.id}'; expected "
            f"({group.units},): one score a unit."
        )
    bad = int((~scores.isfinite()).sum())
    if bad:
        raise InputError(
            f"criterion '{entry.name}' gives {bad} of {group.units} units of group '{group.id}' a score that is not a "
            f"finite number. Look for NaN or infinity in {', '.join(s.name for s in group.slices)}."
        )
    return scores.detach().double().cpu()
