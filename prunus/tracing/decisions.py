"""What a forward decides by looking at values: which boxes stay, which expert a token goes to, how often a loop runs.

Such a decision is recorded with the operator that made it, and made again in every run that is compared with the first:
narrowed networks compute other values in a trial, and in a proof a rounding error must not turn a decision over.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from prunus.core.running import laid_out_as

BY_INDEX = {"index": 1, "_unsafe_index": 1, "index_put": 1, "index_put_": 1, "_index_put_impl_": 1, "masked_select": 1}
ORDERS = ("topk", "sort")
TAGS = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}


def decision(func: Any, args: Any, out: Any) -> tuple[str, Any] | None:
    """What an operator decided: the masks it was given, the order it found, or all it returned; None if nothing."""
    name = func._schema.name.removeprefix("aten::")
    if name in BY_INDEX:
        masks = tuple(m.clone() if _is_mask(m) else None for m in _indices(args))
        return ("masks", masks) if any(m is not None for m in masks) else None
    if name in ORDERS:
        return "order", out[1].clone()
    if name != "torchvision::nms" and not TAGS.intersection(func.tags):
        return None
    if any(leaf.is_floating_point() for leaf in tree_leaves(out) if isinstance(leaf, Tensor)):
        return None
    return "out", tree_map_only(Tensor, torch.clone, out)


def decided(made: tuple[str, Any] | None, func: Any, args: Any, kwargs: Any) -> Any:
    """The operator's result, with the decision made before."""
    if made is None:
        return func(*args, **kwargs)
    kind, what = made
    if kind == "out":
        return tree_map_only(Tensor, torch.clone, what)
    if kind == "masks":
        now = [mask if mask is not None else given for mask, given in zip(what, _indices(args))]
        return func(args[0], now[0] if isinstance(args[1], Tensor) else now, *args[2:], **kwargs)
    x, name = args[0], func._schema.name.removeprefix("aten::")
    ints = [a for a in args[1:] if isinstance(a, int) and not isinstance(a, bool)]
    default = -1 if name == "topk" or not ints else ints[0]
    dim = kwargs.get("dim", ints[1] if name == "topk" and len(ints) > 1 else default)
    fits = x.dim() == what.dim() and all(
        n == m for d, (n, m) in enumerate(zip(x.shape, what.shape)) if d != dim % x.dim()
    )
    return (laid_out_as(x.gather(dim, what), what), what.clone()) if x.dim() and fits else func(*args, **kwargs)


def _indices(args: Any) -> list[Any]:
    return [args[1]] if isinstance(args[1], Tensor) else list(args[1])


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
