"""How many rows a dimension keeps, as a polynomial in the kept units of groups; and equations between such numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from prunus.core import Groups
from prunus.core.operators import Term
from prunus.tracing.parts import Numbering, row_blocks
from prunus.tracing.symbols import Attribute, Computed, Size
from prunus.tracing.tracer import Fact

Symbol = tuple[Any, ...]  # ("group", id), ("rows", axis, rows) or ("attribute", module, place)
Monomial = frozenset[tuple[Symbol, int]]


@dataclass(frozen=True, eq=False)
class Polynomial:
    """A sum of coefficient times a product of symbols to integer powers (negative ones too)."""

    terms: Mapping[Monomial, Fraction] = field(default_factory=dict)

    @classmethod
    def constant(cls, value: Any) -> Polynomial:
        return cls({frozenset(): Fraction(value)} if value else {})

    @classmethod
    def symbol(cls, symbol: Symbol) -> Polynomial:
        return cls({frozenset([(symbol, 1)]): Fraction(1)})

    def __add__(self, other: Polynomial) -> Polynomial:
        out = dict(self.terms)
        for monomial, c in other.terms.items():
            out[monomial] = out.get(monomial, Fraction(0)) + c
        return Polynomial({m: c for m, c in out.items() if c})

    def __mul__(self, other: Polynomial) -> Polynomial:
        out = Polynomial()
        for m, c in self.terms.items():
            for n, d in other.terms.items():
                out = out + Polynomial({_times(m, n): c * d})
        return out

    def __neg__(self) -> Polynomial:
        return Polynomial({m: -c for m, c in self.terms.items()})

    def inverse(self) -> Polynomial | None:
        """One over this; None unless it is a single term."""
        if len(self.terms) != 1:
            return None
        ((monomial, c),) = self.terms.items()
        return Polynomial({frozenset((s, -p) for s, p in monomial): 1 / c})

    @property
    def symbols(self) -> set[Symbol]:
        return {symbol for monomial in self.terms for symbol, _ in monomial}

    def put(self, values: Mapping[Symbol, Polynomial]) -> Polynomial | None:
        """The same with polynomials in the place of symbols; None where one with several terms would be divided by."""
        out = Polynomial()
        for monomial, c in self.terms.items():
            product = Polynomial.constant(c)
            for symbol, power in monomial:
                factor: Polynomial | None = values.get(symbol, Polynomial.symbol(symbol))
                if power < 0 and factor is not None:
                    factor = factor.inverse()
                if factor is None:
                    return None
                for _ in range(abs(power)):
                    product = product * factor
            out = out + product
        return out

    def as_terms(self) -> tuple[Term, ...]:
        """The polynomial as data; it must not hold attributes."""
        out = []
        for monomial, c in self.terms.items():
            groups = tuple((s[1], p) for s, p in monomial if s[0] == "group")
            rows = tuple((s[1], s[2], p) for s, p in monomial if s[0] == "rows")
            out.append(Term(c, groups, rows))
        return tuple(out)


def _times(a: Monomial, b: Monomial) -> Monomial:
    powers = dict(a)
    for symbol, power in b:
        powers[symbol] = powers.get(symbol, 0) + power
    return frozenset((s, p) for s, p in powers.items() if p)


class Counts:
    """Kept rows of the axes of a traced network, as polynomials in the kept units (of a part) of its groups."""

    def __init__(self, groups: Groups, axes: Any) -> None:
        self.groups, self.axes = groups, axes
        self.numbering = Numbering.of(groups)
        self._known: dict[tuple[int, tuple[int, int] | None], Polynomial] = {}

    def rows(self, axis: int, rows: tuple[int, int] | None = None) -> Polynomial:
        """Kept rows of an axis (within `rows`)."""
        key = (axis, rows)
        if key not in self._known:
            matrix = self.groups.axes[axis].numpy()
            part = matrix if rows is None else matrix[rows[0] : rows[1]]
            blocks = list(row_blocks(part, self.numbering))
            whole = all(times for times, _ in blocks)
            self._known[key] = self._polynomial(blocks) if whole else Polynomial.symbol(("rows", axis, rows))
        return self._known[key]

    def _polynomial(self, found: list[tuple[int, tuple[int, ...]]]) -> Polynomial:
        total = Polynomial()
        for times, members in found:
            product = Polynomial.constant(times)
            for m in members:
                product = product * Polynomial.symbol(("group", self.groups.members[m].id))
            total = total + product
        return total

    def members(self, polynomial: Polynomial) -> set[int]:
        """The numbers of the groups that a polynomial depends on."""
        index = {g.id: i for i, g in enumerate(self.groups)}
        out: set[int] = set()
        for symbol in polynomial.symbols:
            if symbol[0] == "group":
                out.add(index[symbol[1]])
            elif symbol[0] == "rows":
                matrix = self.groups.axes[symbol[1]].numpy()
                out.update(self.numbering.group[matrix[matrix >= 0]].tolist())
        return out

    def of_side(self, side: Any) -> Polynomial | None:
        """A fact or an expression as a polynomial; None when it is none."""
        if isinstance(side, Fact):
            axis = self.axes(side.dim)
            if axis is None:
                n = len(side.dim.labels) if side.dim.labels is not None else side.value
                return Polynomial.constant(n if side.rows is None else side.rows[1] - side.rows[0])
            return self.rows(axis, side.rows)
        if isinstance(side, Size):
            axis = self.axes(side.dim)
            return Polynomial.constant(side.value) if axis is None else self.rows(axis)
        if isinstance(side, Attribute):
            return Polynomial.symbol(("attribute", side.module, side.place, side.value))
        if isinstance(side, Computed):
            return self._computed(side)
        return Polynomial.constant(side) if isinstance(side, int) else None

    def _computed(self, side: Computed) -> Polynomial | None:
        if side.name == "pow":  # only whether it changes counts: the base must not
            return None
        parts = [self.of_side(arg) for arg in side.args]
        if any(part is None for part in parts):
            return None
        a, b = parts[0], parts[-1]
        assert a is not None and b is not None
        if side.name == "neg":
            return -a
        if side.name == "add":
            return a + b
        if side.name == "sub":
            return a + -b
        if side.name == "mul":
            return a * b
        if side.name in ("floordiv", "truediv"):
            inverse = b.inverse()
            return None if inverse is None else a * inverse
        return None
