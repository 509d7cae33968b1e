"""Views and permutations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from prunus.core.effective import long_sizes
from prunus.tracing.rules.base import bare, fix_all, passed, rule, space
from prunus.tracing.tracer import Dim, Dims, Tracer


@rule("view", "_unsafe_view", "reshape", "flatten")
def reshape(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Merge and split, block by block of equal product."""
    old, new = list(args[0].shape), list(outs[0].shape)
    if args[0].element_size() != outs[0].element_size():  # the same memory read as another type
        fix_all(t, t.of(args[0]), "the code reads its memory as another type")
        return bare(outs)
    before, after = t.of(args[0]), []
    if 0 in old:
        return [[Dim() for _ in new]]
    i = j = 0
    while i < len(old) or j < len(new):
        left, right = [i], [j]
        m, n = (old[i] if i < len(old) else 1), (new[j] if j < len(new) else 1)
        i, j = i + 1, j + 1
        while m != n:
            if m < n:
                m, left, i = m * old[i], [*left, i], i + 1
            else:
                n, right, j = n * new[j], [*right, j], j + 1
        block = [k for k in left if k < len(old)]
        after += _reblock(
            t, [before[k] for k in block], [old[k] for k in block], [new[k] for k in right if k < len(new)]
        )
    if len(args) > 1 and isinstance(args[1], (list, tuple)) and len(args[1]) == len(new):
        for d, size in enumerate(args[1]):
            t.fact((1, d), size, after[d])
    return [after]


def _reblock(t: Tracer, dims: Dims, old: list[int], new: list[int]) -> Dims:
    """Dimensions of sizes `old` laid out again as `new`, with the same product."""
    if len(dims) == 1 and len(new) == 1:
        return [dims[0]]
    long = [dim for dim, n in zip(dims, old) if n != 1 or dim.labels is not None]
    if len(long) == 1 and long_sizes(new) == [max(old)]:  # beside dimensions of size one, it is what it was
        return [long[0] if n != 1 else Dim() for n in new]
    merged, size = None, 1
    for dim, n in zip(dims, old):
        merged, size = t.labels.merge(merged, size, dim.labels, n), size * n
    out = []
    for n in new[:-1]:
        size //= n
        head, merged = t.labels.split(merged, n, size)
        out.append(Dim(head))
    return [*out, Dim(merged)] if new else []


@rule("permute", "t", "transpose", "numpy_T", "swapaxes")
def permute(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Dimensions in another order."""
    dims = t.of(args[0])
    if len(args) == 3:
        order = list(range(len(dims)))
        a, b = args[1] % len(dims), args[2] % len(dims)
        order[a], order[b] = order[b], order[a]
    elif len(args) == 2:
        order = [d % len(dims) for d in args[1]]
    else:
        order = list(range(len(dims)))[::-1]
    return [[dims[d] for d in order]]


@rule("unsqueeze")
def unsqueeze(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """A dimension of size one more."""
    dims = list(t.of(args[0]))
    dims.insert(args[1] % outs[0].dim(), Dim())
    return [dims]


@rule("squeeze")
def squeeze(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Dimensions of size one less."""
    x = args[0]
    which = range(x.dim()) if len(args) == 1 else [args[1]] if isinstance(args[1], int) else args[1]
    gone = {d % max(x.dim(), 1) for d in which if x.shape[d] == 1}
    if outs[0] is x:  # in place: x has its new shape already
        fix_all(t, t.of(x), "the code squeezes it in place")
        return bare(outs)
    for d in which:  # a dimension that is cut down to one would go too
        dim = t.of(x)[d]
        if dim.labels is not None:
            t.fix(Dim(dim.labels[:2]), "squeeze() needs two of it")
    return [[dim for d, dim in enumerate(t.of(x)) if d not in gone]]


@rule("expand")
def expand(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Repeated along new or size-one dimensions: those fit whatever they meet."""
    x, out = args[0], outs[0]
    dims, missing = t.of(x), out.dim() - x.dim()
    after = []
    for d, n in enumerate(out.shape):
        kept = d >= missing and x.shape[d - missing] == n
        if d >= missing and not kept:  # a piece of size one of a longer dimension
            t.fix(dims[d - missing], "it is repeated along a longer dimension")
        after.append(dims[d - missing] if kept else t.fresh(n))
        t.fact((1, d), args[1][d], after[d])
    return [after]


@rule("repeat")
def repeat(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Copies after each other: every unit appears in each; copies of a dimension of size one fit what they meet."""
    x, times = args[0], args[1]
    missing = len(times) - x.dim()
    dims = [Dim()] * missing + t.of(x)
    sizes = [1] * missing + list(x.shape)
    after = []
    for d, (dim, n, many) in enumerate(zip(dims, sizes, times)):
        if n == 1 and many > 1:
            t.fix(dim, "it is repeated along a longer dimension")
            after.append(t.fresh(many))
            t.fact((1, d), many, after[d])
        else:
            after.append(dim if many == 1 else Dim(t.labels.merge(None, many, dim.labels, n)))
    return [after]


@rule("flip")
def flip(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Indices in the opposite order."""
    return [_flipped(t.of(args[0]), args[1])]


def _flipped(dims: Dims, which: Sequence[int]) -> Dims:
    gone = {d % len(dims) for d in which}
    return [Dim(dim.labels[::-1].copy()) if d in gone and dim.labels is not None else dim for d, dim in enumerate(dims)]


@rule("rot90")
def rotated(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Quarter turns: flips, and an exchange of the two dimensions if they are odd."""
    dims, times = t.of(args[0]), (args[1] if len(args) > 1 else 1) % 4
    a, b = (d % len(dims) for d in (args[2] if len(args) > 2 else (0, 1)))
    dims = _flipped(dims, ([], [b], [a, b], [a])[times])
    if times % 2:
        dims[a], dims[b] = dims[b], dims[a]
    return [passed(dims)]


@rule("roll")
def roll(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Indices move on by a number of places."""
    dims = list(t.of(args[0]))
    for d in args[2] if len(args) > 2 and args[2] else range(len(dims)):
        dims[d] = t.fix(dims[d], "the code counts positions along it")
    return [passed(dims)]


@rule("tril", "triu")
def triangle(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Two dimensions whose positions are compared."""
    dims = list(t.of(args[0]))
    for d in (-2, -1):
        dims[d] = t.fix(dims[d], "the code counts positions along it")
    return [dims]


@rule("unfold")
def unfold(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Windows along one dimension, laid out in a new last one."""
    dims = list(t.of(args[0]))
    dims[args[1]] = space(t, dims[args[1]])
    return [[*dims, Dim()]]


@rule("diagonal", "trace")
def diagonal(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Two dimensions read together by position."""
    dims = t.of(args[0])
    gone = {d % len(dims) for d in (*args[2:4], *(0, 1)[len(args[2:4]) :])}
    fix_all(t, (dims[d] for d in gone), "the code counts positions along it")
    kept = [dim for d, dim in enumerate(dims) if d not in gone]
    return [[*kept, Dim()] if t.call.name == "diagonal" else kept]


@rule("diag_embed")
def diag_embed(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """The last dimension laid along the diagonal of two new ones."""
    *dims, last = t.of(args[0])
    t.fix(last, "the code counts positions along it")
    for d in sorted(d % outs[0].dim() for d in (*args[2:4], *(-2, -1)[len(args[2:4]) :])):
        dims.insert(d, Dim())
    return [dims]


@rule("as_strided")
def as_strided(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """The same sizes and strides are the same tensor, as long as strides can follow the cut; nothing else is followed.

    A stride can follow where it is the number of rows of one dimension: (N, C, 1, 1) with strides (C, 1, ...).
    """
    x, dims = args[0], list(t.of(args[0]))
    long = sorted((d for d, n in enumerate(x.shape) if n > 1), key=x.stride)
    same = tuple(x.shape) == tuple(outs[0].shape) and x.storage_offset() == outs[0].storage_offset()
    if not same or any(x.stride(d) != outs[0].stride(d) for d in long):
        fix_all(t, dims, "the code reads its memory by strides")
        return bare(outs)
    if len(long) == 2 and x.stride(long[0]) == 1 and x.stride(long[1]) == x.shape[long[0]]:
        t.fact((2, long[1]), args[2][long[1]], dims[long[0]])
    else:
        fix_all(t, (dims[d] for d in long[:-1]), "the code reads its memory by strides")
    for d, size in enumerate(args[1]):
        t.fact((1, d), size, dims[d])
    return [dims]


@rule("as_strided_scatter", "diagonal_scatter", "_reshape_alias")
def by_memory(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Memory that is read or written by strides: nothing of it is followed."""
    for x in args[:2]:
        if isinstance(x, Tensor):
            fix_all(t, t.of(x), "the code reads its memory by strides")
    return bare(outs)
