"""Effective weights: tensors that forward computes from parameters alone, found again and computed again.

A layer may read a parameter, or a function of parameters: a mask times a weight, a weight that is normalised or
standardised, a piece of a packed one.  Tensors that are functions of parameters, buffers and constants are numbered
while operators run (`Numbering`); equal functions have one number.  What layers read of them is an effective weight:
its value now is computed from the parameters as they are (`Effective.values`), and its gradient is that of the very
tensor which forward made (`Follow.handles`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from prunus.core.operators import plain_name

FACTORIES = {"zeros", "ones", "full", "eye", "arange", "linspace", "scalar_tensor", "tril_indices", "triu_indices"}
LAYOUT = {  # the same numbers in another order or type: what is read is still the tensor itself
    *("t", "transpose", "permute", "numpy_T", "unsqueeze", "squeeze", "expand", "select", "unbind"),
    *("alias", "detach", "clone", "contiguous", "_to_copy", "lift_fresh", "lift_fresh_copy"),
}
VIEWS = ("view", "_unsafe_view", "reshape")
LARGEST_CONSTANT = 1024  # elements that tell one constant from another


@dataclass(frozen=True)
class Ref:
    """A numbered tensor among the arguments of a step."""

    number: int


@dataclass(frozen=True, eq=False)
class Step:
    """One operator of an expression, and which of its outputs."""

    func: Any
    args: Any
    kwargs: Any
    output: int


class Expressions:
    """Functions of named tensors and constants, each under a number of its own; `base` looks through layout."""

    def __init__(self) -> None:
        self.made: list[str | Tensor | Step] = []  # by number: the name of a leaf, a constant, or a step
        self.base: list[int] = []
        self._table: dict[str, tuple[int, ...]] = {}

    def leaf(self, name: str) -> int:
        """The number of a named tensor."""
        return self._put(f"leaf {name}", (name,), None)[0]

    def constant(self, tensor: Tensor, grow: bool) -> int | None:
        """The number of a constant that forward brings along, told by its values."""
        if tensor.numel() > LARGEST_CONSTANT or tensor.device.type == "meta":
            return None
        key = f"constant {tensor.dtype} {tuple(tensor.shape)} {tensor.tolist()}"
        found = self._table.get(key)
        return found[0] if found else self._put(key, (tensor.clone(),), None)[0] if grow else None

    def step(self, func: Any, args: Any, kwargs: Any, outs: Sequence[Tensor], base: int | None, grow: bool) -> Any:
        """The numbers of an operator's outputs, given arguments with `Ref` for tensors; None for one never seen."""
        key = f"{func} {args!r} {kwargs!r}"
        if key in self._table or not grow:
            return self._table.get(key)
        return self._put(key, tuple(Step(func, args, kwargs, k) for k in range(len(outs))), base)

    def _put(self, key: str, made: tuple[str | Tensor | Step, ...], base: int | None) -> tuple[int, ...]:
        if key not in self._table:
            first = len(self.made)
            self._table[key] = tuple(range(first, first + len(made)))
            self.made += made
            self.base += [number if base is None else base for number in self._table[key]]
        return self._table[key]

    def below(self, numbers: Iterable[int]) -> list[int]:
        """The numbers given and all that they are made of, those that come first in front."""
        found, waiting = set[int](), list(numbers)
        while waiting:
            number = waiting.pop()
            if number not in found:
                found.add(number)
                waiting += _reads(self.made[number])
        return sorted(found)

    def leaves(self, number: int) -> set[str]:
        """The names of the tensors that a number is a function of."""
        return {name for n in self.below([number]) if isinstance(name := self.made[n], str)}

    def values(self, numbers: Iterable[int], tensors: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """What the expressions are, given the named tensors; these are not changed."""
        wanted = set(numbers)
        found: dict[int, Tensor] = {}
        with torch.no_grad(), torch.utils._python_dispatch._disable_current_modes():
            for number in self.below(wanted):
                made = self.made[number]
                if isinstance(made, Step):
                    args, kwargs = tree_map_only(Ref, lambda r: found[r.number], (made.args, made.kwargs))
                    if made.func._schema.is_mutable:
                        args, kwargs = tree_map_only(Tensor, torch.clone, (args, kwargs))
                    outs = made.func(*args, **kwargs)
                    found[number] = [t for t in tree_leaves(outs) if isinstance(t, Tensor)][made.output]
                else:
                    found[number] = tensors[made].detach() if isinstance(made, str) else made
        return {number: found[number] for number in wanted}

    def root(self, number: int) -> int:
        """The tensor whose memory a number shows: through views, down to what was computed, or to a leaf."""
        made = self.made[number]
        while isinstance(made, Step) and made.func.is_view:
            number = next(iter(_reads(made)))
            made = self.made[number]
        return number


def _reads(made: str | Tensor | Step) -> list[int]:
    given = tree_leaves((made.args, made.kwargs)) if isinstance(made, Step) else ()
    return [leaf.number for leaf in given if isinstance(leaf, Ref)]


class Numbering:
    """Which tensors of a running forward are which functions of parameters."""

    def __init__(self, expressions: Expressions, leaves: Mapping[str, Tensor], *, grow: bool) -> None:
        self.expressions, self.grow = expressions, grow
        self._of: WeakIdKeyDictionary = WeakIdKeyDictionary()
        for name, tensor in leaves.items():
            self._of.setdefault(tensor, expressions.leaf(name))

    def of(self, tensor: Tensor) -> int | None:
        """The number of a tensor; None for one that data have gone into."""
        found: int | None = self._of.get(tensor)
        return found

    def see(self, func: Any, args: Any, kwargs: Any, inputs: Sequence[Tensor], outs: Sequence[Tensor]) -> bool:
        """Number what an operator gave, if it computes from numbered tensors alone, and say whether it does."""
        name = plain_name(func)
        if name == "lift_fresh" and self.of(inputs[0]) is None:
            number = self.expressions.constant(inputs[0], self.grow)
            if number is not None:
                self._of[inputs[0]] = number
        known = all(self.of(t) is not None for t in inputs) and (bool(inputs) or name in FACTORIES)
        if not known or not outs or torch.Tag.nondeterministic_seeded in func.tags:
            for tensor in outs:
                self._of.pop(tensor, None)  # data were written into it
            return False
        base = self._base(name, inputs, outs)
        args, kwargs = tree_map_only(Tensor, lambda t: Ref(self.of(t)), (args, kwargs))  # type: ignore[arg-type]
        numbers = self.expressions.step(func, args, kwargs, outs, base, self.grow)
        for k, tensor in enumerate(outs):
            if numbers is None:
                self._of.pop(tensor, None)
            else:
                self._of[tensor] = numbers[k]
        return numbers is not None

    def _base(self, name: str, inputs: Sequence[Tensor], outs: Sequence[Tensor]) -> int | None:
        """What an output is but for its layout; None for something new.  A parameter is itself in any layout."""
        base = self.expressions.base[self.of(inputs[0])] if inputs else 0  # type: ignore[index]
        if name in VIEWS:
            same = long_sizes(inputs[0].shape) == long_sizes(outs[0].shape) and inputs[0].dtype == outs[0].dtype
            return base if same and isinstance(self.expressions.made[base], str) else None
        return base if name in LAYOUT else None


def long_sizes(shape: Sequence[int]) -> list[int]:
    """The sizes that are not one.

    >>> long_sizes((1, 3, 1, 2))
    [3, 2]
    """
    return [n for n in shape if n != 1]


def leaves_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers, and tensors that modules hold as attributes, by name; a tied one under its first."""
    found = dict(model.named_parameters()) | dict(model.named_buffers())
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                found.setdefault(f"{path}.{name}".lstrip("."), value)
    return found


@dataclass(frozen=True, eq=False)
class Effective:
    """The effective weights of a network, by name, as numbers of expressions, and the tensors they are made of."""

    expressions: Expressions
    numbers: Mapping[str, int]
    leaves: Mapping[str, Tensor]

    def values(self, leaves: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Every effective weight, from the parameters as they are now (or from other tensors by their names)."""
        found = self.expressions.values(self.numbers.values(), {**self.leaves, **(leaves or {})})
        return {name: found[number] for name, number in self.numbers.items()}

    def bind(self, model: nn.Module) -> Effective:
        """The same of another copy of the network."""
        return replace(self, leaves={**self.leaves, **leaves_of(model)})


class Follow(TorchDispatchMode):
    """Finds the effective weights in a forward: `handles`, by name, are the tensors that layers read.

    Args:
        leaves: the named tensors that forward runs with.
        instead: values to be put in the place of what is computed, by the number of the expression.
    """

    def __init__(self, effective: Effective, leaves: Mapping[str, Tensor], instead: Mapping[int, Tensor] | None = None):
        super().__init__()
        self.numbering = Numbering(effective.expressions, leaves, grow=False)
        self.instead = instead or {}
        self.handles: dict[str, list[Tensor]] = {}
        self._names = {number: name for name, number in effective.numbers.items()}
        self._met: set[tuple[Any, int]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in inputs:
            name = self._names.get(self.numbering.of(tensor))  # type: ignore[arg-type]
            if name is not None:
                self._note(name, tensor)
        out = func(*args, **(kwargs or {}))
        outs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if self.numbering.see(func, args, kwargs or {}, inputs, outs) and self.instead:
            for tensor in outs:
                value = self.instead.get(self.numbering.of(tensor))  # type: ignore[arg-type]
                if value is not None:
                    tensor.copy_(value)
        return out

    def _note(self, name: str, tensor: Tensor) -> None:
        """Hold a tensor once: the same value may come as several objects."""
        edge = (tensor.grad_fn, tensor.output_nr) if tensor.grad_fn is not None else (id(tensor), 0)
        if edge not in self._met:
            self._met.add(edge)
            self.handles.setdefault(name, []).append(tensor)

    def name(self, tensor: Tensor) -> str | None:
        """The effective weight that an operand is, if it is one."""
        number = self.numbering.of(tensor)
        return None if number is None else self._names.get(self.numbering.expressions.base[number])
