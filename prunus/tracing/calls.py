"""What a recording is made of: dimensions with labels, operator calls, and what must stay equal for a forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from prunus.core.running import has_values
from prunus.tracing.labels import Atoms
from prunus.tracing.symbols import Expression


@dataclass(eq=False)
class Dim:
    """One dimension of a tensor: its labels (n, k) or None, and the parameter dimension it is, unchanged, if any.

    `origin` is the dimension of the parameter, or of the tensor computed from parameters alone, that it is, by number.
    """

    labels: Atoms | None = None
    source: tuple[str, int] | None = None
    origin: tuple[int, int] | None = None


Dims = list[Dim]


@dataclass(eq=False)
class Fact:
    """The integer at `path` in the arguments, which must become the number of kept rows of `dim` (within `rows`)."""

    path: tuple[int, ...]
    value: int
    dim: Dim
    rows: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Equation:
    """What must stay equal for forward to go on as it does: an expression, and a fact, another expression or a number.

    `call` numbers the operator it was found at.  A number that a tensor is multiplied by (`power` 1) or divided by (-1)
    may be made good by the weights that the tensor comes from.
    """

    left: Expression
    right: Fact | Expression
    call: int
    power: int = 0


@dataclass(frozen=True)
class Ref:
    """A tensor among the arguments of a recorded call, by its number."""

    number: int


@dataclass(eq=False)
class Call:
    """One ATen call: what went in, what came out, and what the rule found."""

    name: str
    module: str
    reads: list[int]
    writes: list[int]
    parameters: list[str]
    shapes: list[tuple[int, ...]]
    dims: list[Dims] = field(default_factory=list)
    macs: float = 0.0
    scaled: list[Dim] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    integers: list[tuple[tuple[int, ...], int]] = field(default_factory=list)  # path and value, while functions run
    over: list[Dim] = field(default_factory=list)  # dimensions it computes over: silence does not tell what a cut gives
    contracted: list[Dim] = field(default_factory=list)  # dimensions of two activations over which products are summed
    operands: list[Dims] = field(default_factory=list)  # of every tensor that goes in, of such an operator
    decided: Any = None  # see `decisions`
    computed: bool = False  # from parameters, buffers and constants alone
    numbers: list[tuple[Any, float]] = field(default_factory=list)  # arguments that are numbers and no sizes
    weights: list[int] = field(default_factory=list)  # what it reads of parameters, by number, if it reads data as well
    func: Any = None  # the overload, and its arguments with tensors replaced by `Ref`: only when they are kept
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


ALIGNED = {"_grouped_mm": 8}  # kernels that take sizes in multiples: 16 bytes, of numbers of two bytes too
FACTORS = {"mul": 1, "mul_": 1, "div": -1, "div_": -1}  # what a factor does to the product


def numbers_of(
    name: str, schema: Any, args: Any, kwargs: Any, constant: Callable[[Tensor], bool] = lambda tensor: True
) -> Iterator[tuple[Any, float]]:
    """The arguments of an operator that are numbers and no sizes, by their places; also constant factors in tensors."""
    for place, value in (*enumerate(args), *kwargs.items()):
        number = isinstance(value, float) or (isinstance(value, int) and _is_scalar(schema, place))
        if not number and name in FACTORS and isinstance(value, Tensor):
            number = not value.dim() and has_values(value) and constant(value)
        if number:
            yield place, float(value)


def _is_scalar(schema: Any, place: Any) -> bool:
    return isinstance(place, int) and str(schema.arguments[place].type) in ("number", "Tensor")
