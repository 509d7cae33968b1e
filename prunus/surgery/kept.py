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
from prunus.surgery.finite import all_finite, keeps_finite, leaves
from prunus.tracing.apply import with_scale
from prunus.tracing.decisions import decided

UNSEEN = ("convolution", "relu", "relu_")  # whose results are not looked at


class Kept(TorchDispatchMode):
    """Runs operators that compute over a labelled dimension (norms, softmax ...) on the kept units alone.

    Their silenced units would count in a mean or a sum of exponentials.  The results stand at the kept places of a
    tensor of zeros.  What forward computes from parameters is silenced as layers read it: a sigmoid of zero is none.
    `exact` stays True as long as that changes nothing: then silence alone has told the outcome.
    """

    def __init__(self, groups: Groups, keep: Tensor, finite: frozenset[int] = frozenset()) -> None:
        """`finite` are places in memory of tensors that are known to hold finite numbers alone, while this is used."""
        super().__init__()
        self.finite = finite
        self.known: set[int] = set()  # numbers of tensors, as the operators name them, that hold finite numbers alone
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
        closed = self._makes_finite(op, args, kwargs)  # asked before forward may write into them
        if any(map(self._cut, op.over)) or any(map(self._cut, op.contracted)):
            out = self._on_kept(op, func, args, kwargs)
        else:
            out = decided(op.decided, func, args, with_scale(op.name, args, kwargs))
        if closed:
            self.known.update(op.writes)
        elif func._schema.is_mutable:  # what it writes may be a view of anything
            self.known, self.finite = set(), frozenset()
        else:
            self.known.difference_update(op.writes)
        if op.computed:
            return self._without_removed(op, out, func.is_view)
        return out if closed or op.name in UNSEEN else self._silent(op, out)

    def _makes_finite(self, op: Operator, args: Any, kwargs: Any) -> bool:
        """Whether the results need not be looked at: the operator makes finite numbers of those that it is given."""
        if op.decided is not None or not keeps_finite(op.name, args, kwargs):
            return False
        given = [leaf for leaf in leaves(args, kwargs) if isinstance(leaf, Tensor)]
        return len(given) == len(op.reads) and all(map(self._is_finite, op.reads, given))

    def _is_finite(self, number: int, tensor: Tensor) -> bool:
        if number not in self.known:
            if tensor.layout is not torch.strided:
                return False
            if is_real(tensor) and tensor.data_ptr() not in self.finite and not all_finite(tensor):
                return False
            self.known.add(number)
        return True

    def _silent(self, op: Operator, out: Any) -> Any:
        """Where a removed unit's numbers are none (0 / 0 in a normalised weight), they are zero again."""
        found = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        for leaf, axes, number in zip(found, op.axes, op.writes):
            cut = [(d, axis) for d, axis in enumerate(axes) if axis is not None and self._cut(axis)]
            if not cut or not leaf.is_floating_point() or 0 in leaf.stride():
                continue
            if all_finite(leaf):
                self.known.add(number)
                continue
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
        found = (x for x in tree_leaves(out) if isinstance(x, Tensor))
        for leaf, axes, number in zip(found, op.axes, op.writes):
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
        given, spec = tree_flatten((args, kwargs))
        of = iter(op.operands)
        given = [self._kept(leaf, next(of), op) if isinstance(leaf, Tensor) else leaf for leaf in given]
        args, kwargs = tree_unflatten(given, spec)
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


def _put(args: Any, path: tuple[int, ...], value: int) -> Any:
    """The nested arguments with `value` at `path`."""
    if not path:
        return value
    return type(args)(_put(a, path[1:], value) if i == path[0] else a for i, a in enumerate(args))
