"""A forward made again, operator by operator, beside what was traced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from torch.utils._python_dispatch import TorchDispatchMode

from prunus.core.errors import InputError
from prunus.core.operators import SILENT, alike, plain_name


class Named(Protocol):
    """An operator, as far as a replay knows it."""

    @property
    def name(self) -> str:
        """As `plain_name` gives it."""


Before = Callable[[int, Any, Any], None]  # number of the operator, args, kwargs
After = Callable[[int, Any, Any, Any], Any]  # ... and what it gave; what is returned, if anything, is given on instead


class Replay(TorchDispatchMode):
    """Tells of every ATen call of a forward which of the traced `operators` it is.

    `before` and `after` are called with the number of the operator; under them the mode is off.  `numbers` are those of
    the operators that the forward runs, where it is not all of them (`Groups.of_calls`).  What comes after the
    last one (the loss, where a batch brings labels that the example had not) is passed over.  Raises `InputError` when
    forward does something else than it did when it was traced.
    """

    def __init__(
        self,
        operators: Sequence[Named],
        numbers: Iterable[int] | None = None,
        *,
        before: Before | None = None,
        after: After | None = None,
    ) -> None:
        super().__init__()
        if not operators:
            raise InputError(
                "statistics of units are keyed by the operators of a trace, and these groups have none: use groups = "
                "prunus.trace(model, example_inputs), or for weights a criterion such as 'l1', 'snip', 'wanda', 'obc'."
            )
        self.operators, self.before, self.after = operators, before, after
        numbers = range(len(operators)) if numbers is None else numbers
        self.steps = [i for i in numbers if operators[i].name not in SILENT]
        self.at = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, plain_name(func)
        if name in SILENT:
            return func(*args, **kwargs)
        if self.at == len(self.steps):
            return func(*args, **kwargs)
        number = self.steps[self.at]
        if alike(self.operators[number].name) != alike(name):
            raise InputError(
                f"on these data the network's forward calls {name} where it called {self.operators[number].name} when "
                "it was traced: what was seen cannot be told apart by operator. Trace it with example_inputs like the "
                "data, or use a criterion of weights alone, e.g. 'l2'."
            )
        self.at += 1
        if self.before is not None:
            self.before(number, args, kwargs)
        out = func(*args, **kwargs)
        if self.after is not None:
            given = self.after(number, args, kwargs, out)
            return out if given is None else given
        return out
