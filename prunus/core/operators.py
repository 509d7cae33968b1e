"""What is known of a traced forward: its operators, what they cost, and what of them follows a cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

SILENT = {  # may differ between two runs
    *("detach", "alias", "lift_fresh", "lift_fresh_copy", "empty", "_to_copy", "clone", "contiguous"),
    *("_has_compatible_shallow_copy_type", "is_same_size"),
}


def plain_name(func: Any) -> str:
    """``view`` for ``aten::view.default``."""
    return str(func._schema.name).removeprefix("aten::")


def alike(name: str) -> str:
    """One name for operators that torch chooses between by strides alone."""
    return "view" if name in ("_unsafe_view", "reshape", "_reshape_alias") else name


@dataclass(frozen=True)
class Cost:
    """A cost that is a product: ``coefficient`` times the number of kept rows of every axis in `axes`."""

    coefficient: float
    axes: tuple[int, ...] = ()


@dataclass(frozen=True)
class TensorAxes:
    """A parameter or buffer of the model: its shape, and the axis (row of `Groups.axes`, or None) of every

    Attributes:
        axes: one entry a dimension.
        parameter: True for a parameter, False for a buffer.
    dimension."""

    shape: tuple[int, ...]
    axes: tuple[int | None, ...]
    parameter: bool


@dataclass(frozen=True)
class IntFact:
    """An integer that an operator was called with and that must follow a cut.

    `path` leads to it in the arguments, `value` is what forward passed, `axis` the labelled dimension whose kept rows
    (within `rows`) it has to become.
    """

    path: tuple[int, ...]
    value: int
    axis: int
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Term:
    """``coefficient`` times kept units of groups (id, power) and kept rows of axes (axis, rows, power)."""

    coefficient: Fraction
    groups: tuple[tuple[str, int], ...] = ()
    axes: tuple[tuple[int, tuple[int, int] | None, int], ...] = ()

    def held(self, whole: Mapping[str, int]) -> Term:
        """The term where the groups of `whole` keep all of their units."""
        coefficient = self.coefficient
        for id, power in self.groups:
            if id in whole:
                coefficient *= Fraction(whole[id]) ** power
        return replace(self, coefficient=coefficient, groups=tuple(g for g in self.groups if g[0] not in whole))


@dataclass(frozen=True)
class EditRule:
    """An integer that a module holds, that forward really reads and that must follow a cut: the sum of `terms`.

    Attributes:
        module: qualified name of the module; "" is the network itself.
        attribute: a place in it, as in ``"num_heads"`` or ``"normalized_shape[0]"``.
        value: the integer before any cut.
        terms: what the integer becomes, as sums of kept units and rows; a whole number for every legal cut.
    """

    module: str
    attribute: str
    value: int
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Fold:
    """A number that forward computes from the size of a group, made good by the weights: where a product of two tensors
    over the group's units is scaled by ``kept ** -power``, the weights of each are scaled by ``(kept / units) **
    (power / 2)``."""

    group: str
    power: float


@dataclass(frozen=True, eq=False)
class Operator:
    """One ATen call of the traced forward, in execution order.

    `reads` and `writes` number the tensors that flow between operators; `parameters` are the qualified names of the
    parameters and buffers among the operands; `axes` holds, per output, the axis of every dimension.  An operator that
    computes `over` an axis (a norm, a softmax) gives something else for the kept units alone than for the silenced
    whole; one that sums products of two activations over a `contracted` axis does so where the silenced are not zero.
    For those `operands` holds the axes of every tensor that goes in.  One that is not `computed` from parameters
    alone reads `weights`: parameters and buffers in any layout, and effective weights, by name.

    Attributes:
        name: of the operator, e.g. ``"convolution"``.
        module: qualified name of the module that calls it; "" is the network itself.
        shapes: of every output, as traced, so many samples together.
        macs: multiply-adds of one sample; None for an operator that multiplies nothing.
        facts: integers among its arguments that have to follow a cut; () by default.
        decided: how its result is made again in runs that are compared, where it was chosen by looking at values; None
            else.
        computed: True where it computes from parameters, buffers and constants alone.
    """

    name: str
    module: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    parameters: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    axes: tuple[tuple[int | None, ...], ...]
    macs: Cost | None = None
    facts: tuple[IntFact, ...] = ()
    over: tuple[int, ...] = ()
    contracted: tuple[int, ...] = ()
    operands: tuple[tuple[int | None, ...], ...] = ()
    decided: Any = None
    computed: bool = False
    weights: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fixed:
    """Something that cannot, or may not, be cut, with the reason.

    Attributes:
        what: qualified name of a group, tensor or module, with how much of it where that is not all.
        why: the reason, as a sentence would go on.
    """

    what: str
    why: str
