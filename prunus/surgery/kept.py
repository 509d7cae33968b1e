"""Operators that compute over a cut dimension, run on the kept units alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from prunus.core import Groups, Operator, VerificationError
from prunus.core.operators import SILENT, alike, plain_name
from prunus.core.running import laid_out_as
from prunus.surgery.agreement import is_real
from prunus.tracing.apply import with_scale
from prunus.tracing.decisions import decided

FINITE = ("convolution", "relu", "relu_")  # which make no NaN or infinity of finite numbers


class Kept(TorchDispatchMode):
    """Runs operators that compute over a labelled dimension (norms, softmax ...) on the kept units alone.

    Their silenced units would count in a mean or a sum of exponentials.  The results stand at the kept places of a
    tensor of zeros.  What forward computes from parameters is silenced as layers read it: a sigmoid of zero is none.
    `exact` stays True as long as that changes nothing: then silence alone has told the outcome.
    """

    def __init__(self, groups: Groups, keep: Tensor) -> None:
        super().__init__()
        self.alive = groups.alive(keep)
        self.cut = {a for a, rows in enumerate(self.alive) if a not in groups.counted and not bool(rows.all())}
        self.groups = groups
        self.steps = [op for op in groups.operators if op.name not in SILENT]
        self.at = 0
        self.exact = True
        self._filled: dict[int, set[int]] = {}  # of what was silenced again, the axes where that changed something

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = plain_name(func)
        if name in SILENT:
            return func(*args, **kwargs)
        if self.at >= len(self.steps) or alike(self.steps[self.at].name) != alike(name):
            raise VerificationError(
                f"forward called {name} where it had not when it was traced: nothing can be proven."
            )
        op = self.steps[self.at]
        self.at += 1
        if any(map(self._cut, op.over)) or any(map(self._cut, op.contracted)):
            out = self._on_kept(op, func, args, kwargs)
        else:
            out = decided(op.decided, func, args, with_scale(op.name, args, kwargs))
        return self._without_removed(op, out, func.is_view) if op.computed else self._silent(op, out)

    def _silent(self, op: Operator, out: Any) -> Any:
        """Where a removed unit's numbers are none (0 / 0 in a normalised weight), they are zero again."""
        if op.name in FINITE:
            return out
        for leaf, axes in zip((x for x in tree_leaves(out) if isinstance(x, Tensor)), op.axes):
            cut = [(d, axis) for d, axis in enumerate(axes) if axis is not None and self._cut(axis)]
            if cut and leaf.is_floating_point() and 0 not in leaf.stride() and not _all_finite(leaf):
                self.exact = False
                for d, axis in cut:
                    leaf.index_fill_(d, self._gone(axis, leaf), 0)
        return out

    def _without_removed(self, op: Operator, out: Any, view: bool) -> Any:
        """Of what is computed from parameters alone, removed units are zero whatever it makes of zeros.

        That is silence, unless what was computed of it further has lost the axis: then it counted in another number.
        """
        before = set[int]().union(*(self._filled.get(n, ()) for n in op.reads))
        self.exact = self.exact and all(before <= set(axes) for axes in op.axes)
        leaves = (x for x in tree_leaves(out) if isinstance(x, Tensor))
        for leaf, axes, number in zip(leaves, op.axes, op.writes):
            self._filled[number] = filled = set(before)
            for d, axis in enumerate(axes) if is_real(leaf) and not view else ():
                if axis is not None and self._cut(axis) and bool(leaf.index_select(d, self._gone(axis, leaf)).any()):
                    filled.add(axis)
                    leaf.index_fill_(d, self._gone(axis, leaf), 0)
        return out

    def _cut(self, axis: int) -> bool:
        return axis in self.cut

    def _on_kept(self, op: Operator, func: Any, args: Any, kwargs: Any) -> Any:
        kwargs = with_scale(op.name, args, kwargs)
        whole = func(*args, **kwargs)
        for fact in op.facts:
            if fact.axis in op.over:
                args = _put(args, fact.path, self.groups.kept_rows(self.alive, fact.axis, fact.rows))
        leaves, spec = tree_flatten((args, kwargs))
        of = iter(op.operands)
        leaves = [self._kept(leaf, next(of), op) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(leaves, spec)
        outs, spec = tree_flatten(func(*args, **kwargs))
        wholes, of = tree_leaves(whole), iter(op.axes)
        return tree_unflatten(
            [self._back(o, w, next(of), op) if isinstance(o, Tensor) else o for o, w in zip(outs, wholes)], spec
        )

    def _index(self, axis: int, tensor: Tensor) -> Tensor:
        return self.alive[axis].nonzero().flatten().to(tensor.device)

    def _gone(self, axis: int, tensor: Tensor) -> Tensor:
        return (~self.alive[axis]).nonzero().flatten().to(tensor.device)

    def _kept(self, tensor: Tensor, axes: tuple[int | None, ...], op: Operator) -> Tensor:
        """The kept units of what is computed over; zeros for the others of what products are summed over."""
        for d, axis in enumerate(axes):
            if axis is None or not self._cut(axis):
                continue
            if axis in op.over:
                tensor = tensor.index_select(d, self._index(axis, tensor))
            elif axis in op.contracted:
                tensor = tensor.index_fill(d, self._gone(axis, tensor), 0)
        return tensor

    def _back(self, part: Tensor, whole: Tensor, axes: tuple[int | None, ...], op: Operator) -> Tensor:
        """The result for the kept units, at their places among zeros, and as the whole lies in memory.

        Where it lies decides which operators torch calls next.
        """
        cut = [(d, axis) for d, axis in enumerate(axes) if axis is not None and axis in op.over and self._cut(axis)]
        seen = whole
        for d, axis in cut:
            seen = seen.index_select(d, self._index(axis, seen))
        if self.exact and part.is_floating_point():
            self.exact = seen.shape == part.shape and torch.allclose(seen, part, rtol=1e-10, atol=0, equal_nan=True)
        for d, axis in cut:
            shape = list(part.shape)
            shape[d] = len(self.alive[axis])
            part = part.new_zeros(shape).index_copy_(d, self._index(axis, part), part)
        return laid_out_as(part, whole)


def _all_finite(t: Tensor) -> bool:
    """Whether there is no NaN and no infinity; a finite sum, which is one pass, says so."""
    return bool(t.sum().isfinite()) or bool(t.isfinite().all())


def _put(args: Any, path: tuple[int, ...], value: int) -> Any:
    """The nested arguments with `value` at `path`."""
    if not path:
        return value
    return type(args)(_put(a, path[1:], value) if i == path[0] else a for i, a in enumerate(args))
