"""What is read or written by index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from prunus.tracing.rules.base import fix_all, passed, rule, space
from prunus.tracing.tracer import Dim, Dims, Tracer

PICKED = "the code picks single indices of it"


@rule("index_select")
def index_select(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """A selection: what is selected from stays, the selection itself can be narrowed."""
    x, d, index = args[0], args[1] % args[0].dim(), args[2]
    dims = list(t.of(x))
    t.fix(dims[d], "a channel selection reads it by index")
    chosen = t.of(index)[0] if index.dim() == 1 else Dim()
    t.role(chosen, "index")
    dims[d] = Dim(chosen.labels)
    return [dims]


@rule("embedding")
def embedding(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Rows are looked up and stay; the width passes."""
    rows, width = t.of(args[0])
    t.fix(rows, "rows are looked up in it")
    t.role(width, "out")
    return [[*t.of(args[1]), Dim(width.labels)]]


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Rows are looked up and summed in bags; the width passes."""
    rows, width = t.of(args[0])
    t.fix(rows, "rows are looked up in it")
    t.role(width, "out")
    for x in args[1:]:
        if isinstance(x, Tensor):
            fix_all(t, t.of(x), "it is an index")
    return [[Dim(), Dim(width.labels)] if out.dim() == 2 else [Dim() for _ in out.shape] for out in outs]


@rule("grid_sampler_2d", "grid_sampler_3d")
def sampled(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Values at the places of a grid: (N, C, ...), (N, ..., 2 or 3) -> (N, C, ...)."""
    x, grid = t.of(args[0]), t.of(args[1])
    t.unify(x[0], grid[0])
    for dim in (*x[2:], *grid[1:]):
        space(t, dim)
    return [[*passed(x[:2]), *(Dim() for _ in outs[0].shape[2:])]]


@rule("torchvision::roi_align", "torchvision::roi_pool")
def regions(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """Values in regions of pictures: (N, C, H, W), (regions, 5) -> (regions, C, ...)."""
    x = t.of(args[0])
    for dim in (x[0], *x[2:], *t.of(args[1])):
        space(t, dim)
    return [[Dim(), Dim(x[1].labels), *(Dim() for _ in out.shape[2:])] for out in outs]


@rule("index", "_unsafe_index")
def index(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """x[i, :, j ...] with index tensors: the dimensions that are looked up stay, the others pass."""
    dims, looked, kept, at, extra = _looked_up(t, args[0], args[1])
    fix_all(t, (dims[d] for d in looked), PICKED)
    through = [dims[d] for d in kept]
    return [[*through[:at], *(Dim() for _ in range(outs[0].dim() - len(kept))), *through[at:]]]


@rule("index_put", "_unsafe_index_put", "_index_put_impl")
def index_put(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """x[i, :, j ...] = values: the dimensions that are looked up stay, the others are cut with the values'."""
    dims, looked, kept, at, extra = _looked_up(t, args[0], args[1])
    fix_all(t, (dims[d] for d in looked), PICKED)
    through = [dims[d] for d in kept]
    written = [*through[:at], *[Dim()] * extra, *through[at:]]
    for a, n, b in zip(t.of(args[2])[::-1], tuple(args[2].shape)[::-1], written[::-1]):
        if n > 1:
            t.unify(a, b)
        else:
            t.fix(a, "it is repeated along a longer dimension")
    fix_all(t, t.of(args[2])[: max(args[2].dim() - len(written), 0)], PICKED)
    return [dims]


def _looked_up(t: Tracer, x: Tensor, indices: Sequence[Tensor | None]) -> tuple[Dims, list[int], list[int], int, int]:
    """The dimensions of x, those that index tensors look up, the others, and where how many new ones stand.

    A mask looks up several dimensions and gives one.
    """
    looked: list[int] = []
    d, extra = 0, 0
    for tensor in indices:
        mask = tensor is not None and str(tensor.dtype) in ("torch.bool", "torch.uint8")
        wide = tensor.dim() if tensor is not None and mask else 1
        if tensor is not None:
            looked += range(d, d + wide)
            extra = max(extra, 1 if mask else tensor.dim())
            fix_all(t, t.of(tensor), "it is an index")
        d += wide
    kept = [k for k in range(x.dim()) if k not in looked]
    together = bool(looked) and looked == list(range(looked[0], looked[-1] + 1))
    return list(t.of(x)), looked, kept, sum(k < looked[0] for k in kept) if together else 0, extra


@rule("gather")
def gather(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """out[i, j] = x[i, index[i, j]]: the dimension that is looked up stays."""
    x, d, where = args[0], args[1] % max(args[0].dim(), 1), args[2]
    _beside(t, x, d, where)
    return [passed(t.of(where))]


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """x[i, index[i, j]] = values[i, j]: the dimension that is written to stays, and so does what is written."""
    x, d, where = args[0], args[1] % max(args[0].dim(), 1), args[2]
    for tensor in (args[3], where):
        if isinstance(tensor, Tensor) and tensor.dim() == x.dim():
            _beside(t, tensor, d, where)
    _beside(t, x, d, where)
    fix_all(t, t.of(where)[d : d + 1], "the code writes single indices of it")
    return [list(t.of(x))]


def _beside(t: Tracer, x: Tensor, d: int, where: Tensor) -> None:
    """The dimension `d` of x stays; the others are cut with those of an index, if they are as long."""
    if not x.dim():
        return
    if x is not where:
        t.fix(t.of(x)[d], PICKED)
    for k, (a, b) in enumerate(zip(t.of(x), t.of(where))):
        if k != d and x.shape[k] == where.shape[k]:
            t.unify(a, b)
        elif k != d:
            fix_all(t, (a, b), PICKED)


@rule("index_add", "index_copy", "index_fill", "index_reduce")
def index_add(t: Tracer, args: Any, kwargs: Any, outs: list[Tensor]) -> list[Dims]:
    """x[index] += values along one dimension, which stays."""
    dims, d = list(t.of(args[0])), args[1] % args[0].dim()
    fix_all(t, (dims[d], *t.of(args[2])), PICKED)
    if isinstance(args[3], Tensor) and args[3].dim() == len(dims):
        for k, (a, b) in enumerate(zip(dims, t.of(args[3]))):
            if k == d:
                t.fix(b, PICKED)
            else:
                t.unify(a, b)
    dims[d] = Dim()
    return [dims]
