"""What the model's own code asks of a cut in place: attributes that follow, counts that stay in proportion.

Every equation says that forward goes on as before only if an expression of attributes and sizes equals a number of kept
rows.  Solved for an attribute, it says what the attribute becomes.  What is left over couples groups: ``C // heads ==
head_dim`` holds for all cuts that keep ``C`` in proportion to one of the two while the other stays.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from prunus.core.operators import EditRule, Fold
from prunus.tracing.build import Built
from prunus.tracing.counts import Counts, Polynomial, Symbol
from prunus.tracing.symbols import Attribute, Computed, Expression, Size, evaluated
from prunus.tracing.tracer import Equation, Fact, Tracer

WAY = 32  # operators between a product and the number that scales it


@dataclass
class Solution:
    """Edits and proportions that make every equation hold, or groups that must be fixed first, with the reason."""

    edits: tuple[EditRule, ...] = ()
    proportions: tuple[tuple[str, ...], ...] = ()
    folds: tuple[Fold, ...] = ()
    floors: dict[int, int] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    fix: dict[int, str] = field(default_factory=dict)


def solve(tracer: Tracer, built: Built) -> Solution:
    """Solve the equations of a traced forward for the attributes, and for what couples the groups."""
    counts = Counts(built.groups, built.axes)
    solution = Solution()
    sides: list[tuple[Polynomial, Polynomial, Equation]] = []
    for equation in _that_say_something(tracer.equations):
        expression, side, _ = _bared(equation.left, equation.right)
        left, right = counts.of_side(expression), counts.of_side(side)
        if left is None or right is None:  # a number that must not change: nothing that it is made of may
            why = f"the model computes a number from its size{_where(tracer, equation)}"
            for part in _parts(equation.left):
                found = counts.of_side(part)
                for group in counts.members(found) if found is not None else ():
                    solution.fix.setdefault(group, why)
                if isinstance(part, Attribute) and found is not None:
                    sides.append((found, Polynomial.constant(part.value), equation))
        else:
            sides.append((left, right, equation))
    rules = _rules([side for side in sides if not side[2].power])
    solution.steps = _steps(counts, rules)
    solution.folds, sides = _folds(counts, tracer, built, sides, rules)
    _keep_several(counts, tracer, rules, solution)
    tied: list[tuple[int, int]] = []
    left_over: dict[Any, tuple[Polynomial | None, Polynomial, str]] = {}
    for left, right, equation in sides:
        rest = _rest(left, right, rules)
        if rest is None or rest.terms:
            number = isinstance(equation.right, float)
            does = "model computes a number from its size" if number else "model's code ties its size to others"
            why = f"the {does}{_where(tracer, equation)}"
            key = id(equation) if rest is None else frozenset(rest.terms.items())
            left_over.setdefault(key, (rest, left + right, why))
    for couples in (False, True):  # what must not change at all comes first: it may leave no choice to the others
        for rest, involved, why in sorted(left_over.values(), key=lambda item: len(item[0].symbols) if item[0] else 0):
            sides_of = _two_sides(counts, rest)
            if couples is not (sides_of is not None):
                continue
            if sides_of is None:
                for g in counts.members(rest if rest is not None else involved):
                    solution.fix.setdefault(g, why)
            else:
                _couple(counts, sides_of, why, solution, tied)
        if solution.fix:
            break
    if not solution.fix:
        solution.proportions = _proportions(counts, tied)
        index = {group.id: i for i, group in enumerate(built.groups)}
        for names in solution.proportions:
            if math.gcd(*(built.groups[name].count for name in names)) == 1:
                why = f"the model's code ties its size to that of {', '.join(names[:3])}: no step fits all"
                solution.fix.update({index[name]: why for name in names})
        solution.edits = tuple(
            EditRule(str(s[1]), str(s[2]), int(s[3]), value.as_terms()) for s, value in rules.items() if value.symbols
        )
    return solution


def _that_say_something(equations: list[Equation]) -> list[Equation]:
    """Without those about attributes (strides, paddings ...) that nothing else says anything of."""
    parts = [set(map(_key, _parts(e.left))) | set(map(_key, _parts(e.right))) for e in equations]
    told = [isinstance(e.right, Fact) or any(key[0] == "size" for key in keys) for e, keys in zip(equations, parts)]
    known = {key for keys, says in zip(parts, told) if says for key in keys}
    return [e for e, keys in zip(equations, parts) if keys & known]


def _key(part: Any) -> tuple[Any, ...]:
    return ("attribute", part.module, part.place) if isinstance(part, Attribute) else ("size", id(part))


def _rules(sides: list[tuple[Polynomial, Polynomial, Equation]]) -> dict[Symbol, Polynomial]:
    """What every attribute becomes: the first equation that can be solved for it, plain ones first."""
    rules: dict[Symbol, Polynomial] = {}
    for plain in (True, False):
        found = True
        while found:
            found = False
            for left, right, _ in sides:
                for a, b in ((left, right), (right, left)):
                    solved = _solved(a, b, rules, plain)
                    if solved is not None and solved[0] not in rules:
                        rules[solved[0]] = solved[1]
                        found = True
    return rules


def _solved(
    a: Polynomial, b: Polynomial, rules: dict[Symbol, Polynomial], plain: bool
) -> tuple[Symbol, Polynomial] | None:
    """The attribute alone on the side `a`, and what it equals."""
    unknown = [s for s in a.symbols if s[0] == "attribute" and s not in rules]
    if len(unknown) != 1 or len(a.terms) != 1:
        return None
    value = b.put(rules)
    if value is None or any(s[0] == "attribute" for s in value.symbols):
        return None
    ((monomial, coefficient),) = a.terms.items()
    power = dict(monomial)[unknown[0]]
    others = Polynomial({frozenset((s, p) for s, p in monomial if s != unknown[0]): coefficient}).put(rules)
    if others is None or (plain and (len(monomial) > 1 or power != 1 or coefficient != 1)) or abs(power) != 1:
        return None
    quotient, divisor = (value, others) if power == 1 else (others, value)
    inverse = divisor.inverse()
    found = None if inverse is None else quotient * inverse
    return None if found is None or not _whole(found) else (unknown[0], found)


def _whole(value: Polynomial) -> bool:
    """Whether a number of kept units comes out whole, if need be for groups cut in steps."""
    return all(
        all(power > 0 for _, power in monomial)
        and (c.denominator == 1 or (len(monomial) == 1 and next(iter(monomial))[0][0] == "group"))
        for monomial, c in value.terms.items()
    )


def _steps(counts: Counts, rules: dict[Symbol, Polynomial]) -> dict[int, int]:
    """Per group, the multiples in which units stay so that every attribute is a whole number."""
    index = {g.id: i for i, g in enumerate(counts.groups)}
    steps: dict[int, int] = {}
    for value in rules.values():
        for monomial, c in value.terms.items():
            if c.denominator > 1 and monomial:
                ((symbol, _),) = monomial
                steps[index[symbol[1]]] = math.lcm(steps.get(index[symbol[1]], 1), c.denominator)
    return steps


def _rest(left: Polynomial, right: Polynomial, rules: dict[Symbol, Polynomial]) -> Polynomial | None:
    """What is left of an equation once the attributes are known; an attribute without a rule keeps its value."""
    both = left + -right
    values = {s: rules.get(s, Polynomial.constant(int(s[3]))) for s in both.symbols if s[0] == "attribute"}
    return both.put(values)


def _keep_several(counts: Counts, tracer: Tracer, rules: dict[Symbol, Polynomial], solution: Solution) -> None:
    """Where code goes another way at one (``if repeats == 1``), two units stay; a group of two stays whole."""
    for expression in tracer.several:
        side = counts.of_side(expression)
        count = None if side is None else _rest(side, Polynomial(), rules)
        if count is None or len(count.terms) != 1 or len(count.symbols) != 1:
            continue
        ((monomial, coefficient),) = count.terms.items()
        ((symbol, power),) = monomial
        if symbol[0] == "group" and power == 1 and coefficient == 1:
            group = next(iter(counts.members(count)))
            solution.floors[group] = 2
            if counts.groups.members[group].count <= 2:
                solution.fix.setdefault(group, "the model's code goes another way when there is one")


def _two_sides(counts: Counts, rest: Polynomial | None) -> tuple[set[int], set[int]] | None:
    """The groups on either side of ``product == product``; None when what is left of an equation has no such form."""
    if rest is None or len(rest.terms) != 2 or any(s[0] != "group" for s in rest.symbols):
        return None
    (m, c), (n, d) = rest.terms.items()
    index = {g.id: i for i, g in enumerate(counts.groups)}
    ours = [(index[s[1]], p) for s, p in m - n]
    theirs = [(index[s[1]], p) for s, p in n - m]
    left, right = (
        {g for g, p in side if p > 0} | {g for g, p in other if p < 0}
        for side, other in ((ours, theirs), (theirs, ours))
    )
    return (left, right) if c * d < 0 and left and right else None


def _couple(
    counts: Counts, sides: tuple[set[int], set[int]], why: str, solution: Solution, tied: list[tuple[int, int]]
) -> None:
    """Keep two groups, one of either side, in proportion (those that are so, or the largest); fix the others."""
    kept = [max(side, key=lambda g: (counts.groups.members[g].units, -g)) for side in sides]
    kept = next(([a, b] for a in sides[0] for b in sides[1] if (a, b) in tied or (b, a) in tied), kept)
    for g in (sides[0] | sides[1]) - set(kept):
        solution.fix.setdefault(g, why)
    tied.append((kept[0], kept[1]))


def _proportions(counts: Counts, tied: list[tuple[int, int]]) -> tuple[tuple[str, ...], ...]:
    """Groups that are tied, directly or through others, in order."""
    parent = list(range(len(counts.groups)))

    def find(g: int) -> int:
        while parent[g] != g:
            parent[g] = parent[parent[g]]
            g = parent[g]
        return g

    for a, b in tied:
        parent[find(max(a, b))] = find(min(a, b))
    members: dict[int, list[str]] = {}
    for g in sorted({g for pair in tied for g in pair}):
        members.setdefault(find(g), []).append(counts.groups.members[g].id)
    return tuple(tuple(ids) for ids in members.values() if len(ids) > 1)


def _folds(
    counts: Counts,
    tracer: Tracer,
    built: Built,
    sides: list[tuple[Polynomial, Polynomial, Equation]],
    rules: dict[Symbol, Polynomial],
) -> tuple[tuple[Fold, ...], list[tuple[Polynomial, Polynomial, Equation]]]:
    """Numbers that the weights can make good, and the equations that are left."""
    contracted: set[int] = set()
    for axis in {axis for op in built.groups.operators for axis in op.contracted}:
        contracted |= counts.members(counts.rows(axis))
    folds, rest = [], []
    for left, right, equation in sides:
        _, _, power = _bared(equation.left, equation.right)
        found = _rest(left, Polynomial(), rules) if equation.power else None
        if found is not None and len(found.terms) == 1 and len(found.symbols) == 1:
            ((monomial, _),) = found.terms.items()
            ((symbol, degree),) = monomial
            member = next(iter(counts.members(found)))
            known = symbol[0] == "group" and not built.groups[member].with_role("other")  # weights to make it good in
            power = power if known and _multiplies(counts, tracer, equation.call, member) else math.nan
            if degree == 1 and member in contracted and not math.isnan(power):
                folds.append(Fold(symbol[1], -power * equation.power))
                continue
        rest.append((left, right, equation))
    return tuple(folds), rest


def _multiplies(counts: Counts, tracer: Tracer, at: int, member: int) -> bool:
    """Whether what goes into a call is made of something that has the group in it, or was summed over it."""
    makers = {number: i for i, call in enumerate(tracer.calls[: at + 1]) for number in call.writes}
    waiting, seen = list(tracer.calls[at].reads), set[int]()
    while waiting and len(seen) < WAY:
        number = waiting.pop(0)
        if number in seen or number not in makers:
            continue
        seen.add(number)
        call = tracer.calls[makers[number]]
        axes = {counts.axes(dim) for dims in (*call.dims, call.contracted) for dim in dims} - {None}
        if any(member in counts.members(counts.rows(axis)) for axis in axes):
            return True
        waiting += call.reads
    return False


def _bared(expression: Expression, value: Any) -> tuple[Expression, Any, float]:
    """``f(x) == number`` as ``x == number``, for an injective f of one expression: powers, sums with numbers.

    Also the power of x that f is, where it is one (times a number).
    """
    power = 1.0
    while isinstance(expression, Computed) and isinstance(value, (int, float)):
        inner = [arg for arg in expression.args if not isinstance(arg, (int, float))]
        if len(inner) != 1 or expression.name in ("mod", "floordiv"):
            break
        if expression.name == "pow":
            power *= expression.args[1] if inner[0] is expression.args[0] else math.nan
        elif expression.name == "truediv" and inner[0] is expression.args[1]:
            power = -power
        elif expression.name in ("add", "sub"):
            power = math.nan
        expression, value = inner[0], evaluated(inner[0])
    return expression, value, power


def _parts(expression: Any) -> list[Attribute | Size]:
    """The attributes and sizes that an expression is made of."""
    if isinstance(expression, Computed):
        return [part for arg in expression.args for part in _parts(arg)]
    return [expression] if isinstance(expression, (Attribute, Size)) else []


def _where(tracer: Tracer, equation: Equation) -> str:
    if not 0 <= equation.call < len(tracer.calls):
        return ""
    call = tracer.calls[equation.call]
    return f" ({call.name} in '{call.module}')" if call.module else f" ({call.name})"
