"""What an operator without a rule does to an index, learnt by running it: the fallback of the rules.

Every index of an input dimension is changed in half of ``2 log2(n)`` runs, by the bits of its number.  Which rows of
the output change spells out, bit by bit, which index each row comes from; a row that changes in both runs of a bit
comes from several.  Then the operator is run on inputs narrowed in several ways: only if that gives the narrowed
outputs every time is the map believed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from prunus.core.callbacks import OUT_OF_MEMORY

if TYPE_CHECKING:
    from prunus.tracing.tracer import Dims, Tracer

LARGEST = 1 << 22  # elements; larger operands are not probed
DRAWS = 3  # of values: an operator may ignore some values by chance
UNCHECKED = ("mkldnn", "_mkldnn", "cudnn", "_cudnn", "miopen", "_thnn")  # kernels that crash on sizes that do not fit

Maps = dict[tuple[int, int], list[tuple[int, int, Tensor]]]  # (input, dim) -> (output, dim, source index of every row)


def unknown_operator(t: Tracer, func: Any, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Labels through an operator without a rule: by its index map where one can be learnt, else everything is fixed."""
    from prunus.tracing.tracer import Dim

    inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    name = func._schema.name.removeprefix("aten::")
    labelled = [(i, d) for i, x in enumerate(inputs) for d, dim in enumerate(t.of(x)) if dim.labels is not None]
    with torch.utils._python_dispatch._disable_current_modes():
        maps = learn(func, args, kwargs, labelled)
    after = [[Dim() for _ in out.shape] for out in outs]
    lost = False
    for place in labelled:
        dim = t.of(inputs[place[0]])[place[1]]
        if place not in maps:
            t.fix(dim, f"the operator {name} has no rule")
            lost = True
            continue
        for o, e, source in maps[place]:
            rows = Dim(dim.labels[source.numpy()])  # type: ignore[index]
            if after[o][e].labels is not None:
                t.unify(after[o][e], rows)
            after[o][e] = rows
    t.unknown[name] = "no rule: what it touches is left alone" if lost else "no rule: its index map was learnt by runs"
    return after


def learn(func: Any, args: Any, kwargs: Any, places: list[tuple[int, int]]) -> Maps:
    """The index maps of the input dimensions `places` (number of the tensor, dim); those without one are absent."""
    leaves, spec = tree_flatten((args, kwargs))
    at = [k for k, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    random = torch.Tag.nondeterministic_seeded in func.tags
    unchecked = func._schema.name.partition("::")[2].startswith(UNCHECKED)
    if func._schema.is_mutable or random or unchecked or any(leaves[k].numel() > LARGEST for k in at):
        return {}

    def call(values: dict[int, Tensor]) -> list[Tensor]:
        given = list(leaves)
        for i, value in values.items():
            given[at[i]] = value
        a, k = tree_unflatten(given, spec)
        return [leaf for leaf in tree_leaves(func(*a, **k)) if isinstance(leaf, Tensor)]

    maps: Maps = {}
    for i, d in places:
        x = leaves[at[i]].detach()
        try:
            found = _map(call, i, x, d) if x.is_floating_point() else None
        except OUT_OF_MEMORY:
            raise
        except Exception:  # the operator does not take other values
            found = None
        if found:
            maps[i, d] = found
    _believe(call, leaves, at, maps)
    return maps


def _map(call: Any, i: int, x: Tensor, d: int) -> list[tuple[int, int, Tensor]] | None:
    """Per output, the dimension that this one passes to and the source index of its rows; None if it does not pass."""
    n = x.shape[d]
    bits = max(1, (n - 1).bit_length())
    generator = torch.Generator().manual_seed(0)
    changed: list[list[Any]] = []  # [bit * 2 + polarity][output][dim] -> (rows,)
    for bit in range(bits):
        for polarity in (0, 1):
            index = ((torch.arange(n) >> bit) & 1).eq(polarity)
            seen: list[Any] = []
            for _ in range(DRAWS):
                base = x + torch.rand(x.shape, generator=generator).to(x)
                other = base.clone()
                rows = index.nonzero().flatten()
                noise = torch.rand(base.shape, generator=generator).to(x) + 0.5
                other.index_copy_(d, rows, (base + noise).index_select(d, rows))
                pairs = list(zip(call({i: base}), call({i: other})))
                now = [[_rows_differ(a, b, e) for e in range(a.dim())] for a, b in pairs]
                seen = now if not seen else [[p | q for p, q in zip(s, m)] for s, m in zip(seen, now)]
            changed.append(seen)
    out = []
    for o in range(len(changed[0])):
        fits = []
        for e in range(len(changed[0][o])):
            off = torch.stack([changed[2 * b][o][e] for b in range(bits)])  # (bits, rows)
            on = torch.stack([changed[2 * b + 1][o][e] for b in range(bits)])
            if bool((on ^ off).all()):
                fits.append((o, e, (on.long() << torch.arange(bits)[:, None]).sum(0)))
        if len(fits) != 1 or int(fits[0][2].max()) >= n:
            return None
        out += fits
    return out


def _rows_differ(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """``(rows,)``: whether anything in each row of `dim` differs (not-a-number equals itself)."""
    differ = (a != b) & ~((a != a) & (b != b))
    return differ.movedim(dim, 0).reshape(a.shape[dim], -1).any(1)


def _believe(call: Any, leaves: list[Any], at: list[int], maps: Maps) -> None:
    """Drop the maps of inputs that, narrowed together as far as they meet, do not give the narrowed outputs."""
    for together in _meeting(maps):
        n = leaves[at[together[0][0]]].shape[together[0][1]]
        try:
            same = all(_narrows(call, leaves, at, {p: maps[p] for p in together}, keep) for keep in _choices(n))
        except OUT_OF_MEMORY:
            raise
        except Exception:  # a size among the arguments, say
            same = False
        if not same:
            for place in together:
                del maps[place]


def _meeting(maps: Maps) -> list[list[tuple[int, int]]]:
    """The inputs gathered by the output dimensions that they share, directly or through others."""
    groups: list[tuple[list[tuple[int, int]], set[tuple[int, int]]]] = []
    for place, found in maps.items():
        places, outs = [place], {(o, e) for o, e, _ in found}
        for group in [g for g in groups if g[1] & outs]:
            groups.remove(group)
            places, outs = group[0] + places, group[1] | outs
        groups.append((places, outs))
    return [places for places, _ in groups]


def _choices(n: int) -> list[Tensor]:
    """Masks of n indices that an operator which counts positions, or divides by their number, is not equal under."""
    generator, index = torch.Generator().manual_seed(1), torch.arange(n)
    choices = [index > 0, index < n - 1, index < n // 2, index >= n // 2, index % 2 == 1]
    choices += [torch.rand(n, generator=generator) < 0.6 for _ in range(2)]
    return [keep for keep in choices if keep.any() and not keep.all()]


def _narrows(call: Any, leaves: list[Any], at: list[int], maps: Maps, keep: Tensor) -> bool:
    """Whether narrowed inputs give the narrowed outputs, on the values given and on others."""
    sources: dict[tuple[int, int], Tensor] = {}
    for found in maps.values():
        for o, e, source in found:
            if not torch.equal(sources.setdefault((o, e), source), source):
                return False
    index = keep.nonzero().flatten()
    generator = torch.Generator().manual_seed(2)
    for noise in (0.0, 1.0):
        values = {}
        for i in {i for i, _ in maps}:
            x = leaves[at[i]].detach()
            values[i] = x + noise * torch.rand(x.shape, generator=generator).to(x)
        part = dict(values)
        for i, d in maps:
            part[i] = part[i].index_select(d, index.to(part[i].device))
        whole = call(values)
        for (o, e), source in sources.items():
            whole[o] = whole[o].index_select(e, keep[source].nonzero().flatten().to(whole[o].device))
        pairs = list(zip(whole, call(part), strict=True))
        if not all(a.shape == b.shape and torch.allclose(a, b, equal_nan=True) for a, b in pairs):
            return False
    return True
