"""torch's functions, seen above the operators: which traced numbers go in, and which operators come of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from prunus.tracing.calls import Equation, Fact
from prunus.tracing.symbols import (
    Computed,
    Expression,
    Size,
    TracedFloat,
    TracedInt,
    evaluated,
    expression,
    leaves,
    plain,
    stripped,
    traced,
)

if TYPE_CHECKING:
    from prunus.tracing.tracer import Tracer

POWERS = {"mul": 1, "rmul": 1, "imul": 1, "multiply": 1, "div": -1, "truediv": -1, "itruediv": -1, "divide": -1}
POWERS["scaled_dot_product_attention"] = 1

TRACED = (TracedInt, TracedFloat)
LEAVES_TORCH = {torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__dlpack__}


class Functions(TorchFunctionMode):
    """Sees torch's functions above the operators: which traced numbers go in, and which operators come of it."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__" and func == torch.Tensor.shape.__get__:  # type: ignore[attr-defined]
            return torch.Size(self._sizes(args[0]))
        if func is torch.Tensor.size:
            which = [*args[1:], *kwargs.values()]
            sizes = self._sizes(args[0])
            return sizes[which[0]] if which and which[0] is not None else torch.Size(sizes)
        if func is torch.Tensor.numel or func is torch.numel:
            return math.prod(self._sizes(args[0]))
        if func in LEAVES_TORCH:
            for dim in self.tracer.of(args[0]):
                self.tracer.fix(dim, "forward takes its values out of torch")
        if name == "rms_norm":  # no operator that comes of it is given the sizes that it asks for
            args, kwargs = self._last_sizes(*args, **kwargs), {}
        numbers = list(leaves((args, kwargs)))
        first = len(self.tracer.calls)
        if not any(type(v) in TRACED for v in numbers):
            out = func(*args, **kwargs)
        else:
            out = func(*stripped(args), **stripped(kwargs))
            self._explain(numbers, first, POWERS.get(name.strip("_"), 0))
        if name == "scaled_dot_product_attention" and kwargs.get("scale") is None:
            self._number(Computed("pow", (expression(self._sizes(args[0])[-1]), -0.5)), first, 1)
        return out

    def _sizes(self, tensor: Tensor) -> list[int]:
        """The shape; labelled sizes remember their dimension."""
        dims = self.tracer.of(tensor)
        return [n if d.labels is None else traced(n, Size(d, n)) for n, d in zip(tuple(tensor.shape), dims)]

    def _last_sizes(self, input: Tensor, normalized_shape: Any, weight: Any = None, eps: Any = None) -> tuple[Any, ...]:
        """The arguments with plain numbers, once it is said that they are the last sizes of the input."""
        for size, number in zip(self._sizes(input)[::-1], normalized_shape[::-1]):
            self.tracer.equations.append(Equation(expression(number), expression(size), len(self.tracer.calls)))
        return input, stripped(normalized_shape), weight, eps

    def _explain(self, numbers: list[Any], first: int, power: int) -> None:
        """Match the numbers that a function was called with to the integers of the operators that came of it."""
        calls = self.tracer.calls[first:]
        found = [(first + i, path, value) for i, call in enumerate(calls) for path, value in call.integers]
        whole = [v for v in numbers if isinstance(v, int)]
        same = len(whole) == len(found) and all(
            plain(a) == c or (type(a) is int and -1 in (a, c)) for a, (_, _, c) in zip(whole, found)
        )
        places = iter(found if same else self._places(whole, found))
        for number in numbers:
            at: Any = next(places) if isinstance(number, int) else None
            if type(number) not in TRACED:
                continue
            fact = None if at is None else self._fact(at[0], at[1])
            if fact is not None:
                self.tracer.equations.append(Equation(expression(number), fact, at[0]))
            else:
                self._number(expression(number), first, power)

    def _places(self, numbers: list[int], found: list[Any]) -> list[Any]:
        """Where the numbers are among the integers of operators: in order, as many as are there in that order.

        Of equal integers a traced number is one that follows a cut: two groups, in a batch of two.  What comes in
        another order is the first of its value.
        """
        follows = [self._fact(*place[:2]) is not None for place in found]
        best = [[(0, 0)] * (len(found) + 1) for _ in range(len(numbers) + 1)]  # from there on: matched, and following

        def with_it(i: int, j: int) -> tuple[int, int]:
            many, following = best[i + 1][j + 1]
            return (many + 1, following + (follows[j] and type(numbers[i]) in TRACED))

        for i in range(len(numbers) - 1, -1, -1):
            for j in range(len(found) - 1, -1, -1):
                best[i][j] = max(best[i + 1][j], best[i][j + 1])
                if plain(numbers[i]) == found[j][2]:
                    best[i][j] = max(best[i][j], with_it(i, j))
        out, i, j = list[Any]([None] * len(numbers)), 0, 0
        while i < len(numbers) and j < len(found):
            if plain(numbers[i]) == found[j][2] and with_it(i, j) == best[i][j]:
                out[i], i, j = found[j], i + 1, j + 1
            elif best[i][j + 1] == best[i][j]:
                j += 1
            else:
                i += 1
        left = [place for place in found if place not in out]
        return [place if place is not None else _take(left, plain(n)) for n, place in zip(numbers, out)]

    def _fact(self, call: int, path: tuple[int, ...]) -> Fact | None:
        return next((fact for fact in self.tracer.calls[call].facts if fact.path == path), None)

    def _number(self, expression: Expression, first: int, power: int = 0) -> None:
        """A number that must not change, whatever is cut."""
        value = evaluated(expression)
        self.tracer.explained.update(range(first, len(self.tracer.calls)))
        self.tracer.equations.append(Equation(expression, value, max(len(self.tracer.calls) - 1, first), power))


def _take(found: list[Any], value: int) -> Any:
    """Take the first integer of that value off the list."""
    for i, (_, _, other) in enumerate(found):
        if other == value:
            return found.pop(i)
    return None
