"""How far do the outputs of two networks differ, and what does it say that they agree?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


def is_real(t: Tensor) -> bool:
    """Whether a tensor holds numbers that small changes of the weights change little: floating point or complex."""
    return t.is_floating_point() or t.is_complex()


def relative_error(a: Tensor, b: Tensor) -> float:
    """``max |a - b| / max |b|`` over finite numbers; infinite when shapes differ, when NaN or infinity stand at other
    places in `a` than in `b`, or when there is nothing to compare.

    Masked logits and padded places are the same in both networks, so that they say nothing, and do not hinder either.

    >>> relative_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    0.5
    >>> a, b = torch.tensor([1.0, -float("inf")]), torch.tensor([1.0, float("inf")])
    >>> relative_error(a, a), relative_error(a, b), relative_error(a[1:], a[1:])
    (0.0, inf, inf)
    """
    if a.shape != b.shape or a.is_complex() != b.is_complex():
        return float("inf")
    if a.is_complex():
        a, b = torch.view_as_real(a.resolve_conj()), torch.view_as_real(b.resolve_conj())
    finite = torch.isfinite(b)
    if not finite.all():
        others = ~finite
        if not torch.equal(torch.isfinite(a), finite) or not _same_numbers(a[others], b[others]):
            return float("inf")
        a, b = a[finite], b[finite]
    if a.numel() == 0 or not torch.isfinite(a).all():
        return float("inf")
    largest = float(b.abs().max())
    difference = float((a - b).abs().max())
    return difference / largest if largest else (0.0 if difference == 0 else float("inf"))


def _same_numbers(a: Tensor, b: Tensor) -> bool:
    """Whether NaN stands where NaN stands, and each infinity has its sign."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a == float("inf"), b == float("inf"))


def says_something(outputs: Sequence[Tensor]) -> bool:
    """Whether any output is a real number other than zero: agreement on nothing proves nothing."""
    return any(bool((b.isfinite() & (b != 0)).any()) for b in outputs if is_real(b))


def _says_nothing(b: Tensor) -> bool:
    return is_real(b) and not bool(b.isfinite().any())


def worst_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest `relative_error` of the real outputs; an output with no finite number need only be the same."""
    if len(found) != len(expected):
        return float("inf")
    errors = []
    for a, b in zip(found, expected):
        if _says_nothing(b):
            same = a.shape == b.shape and not (a.is_complex() or b.is_complex()) and _same_numbers(a, b)
            errors.append(0.0 if same else float("inf"))
        elif is_real(b):
            errors.append(relative_error(a, b))
    return max(errors, default=0.0)


def flipped(found: Sequence[Tensor], expected: Sequence[Tensor]) -> list[Tensor | None]:
    """Per output, where integers or truth values differ; None where nothing does, or it is a real output."""
    out: list[Tensor | None] = []
    for a, b in zip(found, expected):
        if is_real(b):
            out.append(None)
        elif a.shape != b.shape:
            out.append(torch.ones(()).bool())
        else:
            differ = a != b
            out.append(differ if differ.any() else None)
    return out


class Behind(TorchDispatchMode):
    """Remembers which real numbers every integer and truth value was decided from.

    Predicted classes and thresholds say little of the numbers before them: those are compared too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.of: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        outs = [t for t in tree_leaves(out) if isinstance(t, Tensor) and not is_real(t)]
        if outs:
            given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            sources = [s for t in given for s in ([t] if is_real(t) else self.of.get(t, ()))]
            for t in outs if sources else ():
                self.of[t] = [*self.of.get(t, ()), *sources] if any(t is g for g in given) else sources
        return out

    def decided(self, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the integer outputs were decided from, each tensor once, in order."""
        found = {id(s): s for t in outputs if not is_real(t) for s in self.of.get(t, ())}
        return tuple(s.clone() for s in found.values())
