"""Functions of single values that a kernel applies to what it has in registers, before it is stored."""

from __future__ import annotations

from collections.abc import Callable
from math import log, sqrt
from typing import Any

from prunus.runtime.emit import Emitter

ROUNDS = 1.5 * 2**23  # a float plus this has no digits after the point, and its lowest bits are the integer
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # the first has few bits, so that its multiples are exact
EXP = (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0)
ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)  # Abramowitz and Stegun 7.1.26

SMALL, LARGE = 0.35, 20.0  # below the one polynomials are right; beyond the other mish(x) is x
NEAR_EXPM1 = (1 / 40320, 1 / 5040, *EXP[:-1])  # of (exp(x) - 1) / x
NEAR_TANH = (-1382 / 155925, 62 / 2835, -17 / 315, 2 / 15, -1 / 3, 1.0)  # of tanh(x) / x, in x^2


def polynomial(e: Emitter, x: Any, coefficients: tuple[float, ...]) -> Any:
    """Horner's scheme, the highest power first."""
    value = e.floats(coefficients[0])
    for c in coefficients[1:]:
        value = e.call("fma", value, x, e.floats(c))
    return value


def exp(e: Emitter, x: Any) -> Any:
    r"""$e^x = 2^n e^r$, $n$ the integer nearest $x / \ln 2$; relative error 1e-7; what is not a number stays so."""
    x = e.clamp(x, e.floats(-87.0), e.floats(88.0))
    shifted = e.call("fma", x, e.floats(1 / log(2)), e.floats(ROUNDS))
    n = e.b.fsub(shifted, e.floats(ROUNDS))
    r = e.call("fma", n, e.floats(-LN2_LOW), e.call("fma", n, e.floats(-LN2_HIGH), x))
    integers = e.ir.VectorType(e.i32, e.lanes)
    bits = e.b.add(e.b.bitcast(shifted, integers), e.ir.Constant(integers, [127] * e.lanes))
    power = e.b.bitcast(e.b.shl(bits, e.ir.Constant(integers, [23] * e.lanes)), e.vector)
    return e.b.fmul(polynomial(e, r, EXP), power)


def sigmoid(e: Emitter, x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    one = e.floats(1.0)
    return e.b.fdiv(one, e.b.fadd(one, exp(e, e.b.fsub(e.floats(-0.0), x))))


def hardsigmoid(e: Emitter, x: Any) -> Any:
    """x / 6 + 1/2, between 0 and 1."""
    return e.clamp(e.call("fma", x, e.floats(1 / 6), e.floats(0.5)), e.floats(0.0), e.floats(1.0))


def gelu(e: Emitter, x: Any) -> Any:
    """x (1 + erf(x / sqrt 2)) / 2."""
    minus = e.b.fcmp_ordered("<", x, e.floats(0.0))
    z = e.b.fmul(x, e.floats(1 / sqrt(2)))
    size = e.b.select(minus, e.b.fsub(e.floats(-0.0), z), z)
    t = e.b.fdiv(e.floats(1.0), e.call("fma", size, e.floats(0.3275911), e.floats(1.0)))
    tail = e.b.fmul(e.b.fmul(polynomial(e, t, ERF), t), exp(e, e.b.fsub(e.floats(-0.0), e.b.fmul(size, size))))
    # 1 + erf: of a negative value it is the tail itself, and no difference of almost equal numbers
    return e.b.fmul(e.b.fmul(x, e.floats(0.5)), e.b.select(minus, tail, e.b.fsub(e.floats(2.0), tail)))


def gelu_tanh(e: Emitter, x: Any) -> Any:
    """x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)), the same as with tanh."""
    inner = e.call("fma", e.b.fmul(x, x), e.floats(0.044715), e.floats(1.0))
    return e.b.fmul(x, sigmoid(e, e.b.fmul(e.b.fmul(x, inner), e.floats(2 * sqrt(2 / 3.141592653589793)))))


def expm1(e: Emitter, x: Any) -> Any:
    """exp(x) - 1; near zero by a polynomial, as no difference of almost equal numbers."""
    near = e.b.fmul(x, polynomial(e, x, NEAR_EXPM1))
    return e.b.select(_small(e, x), near, e.b.fsub(exp(e, x), e.floats(1.0)))


def tanh(e: Emitter, x: Any) -> Any:
    """2 sigmoid(2 x) - 1, near zero by a polynomial."""
    two = e.floats(2.0)
    near = e.b.fmul(x, polynomial(e, e.b.fmul(x, x), NEAR_TANH))
    return e.b.select(_small(e, x), near, e.call("fma", sigmoid(e, e.b.fmul(x, two)), two, e.floats(-1.0)))


def _small(e: Emitter, x: Any) -> Any:
    return e.b.fcmp_ordered("<", e.call("fabs", x), e.floats(SMALL))


def leaky_relu(e: Emitter, x: Any, slope: float) -> Any:
    """x, or where that is negative, a part of it."""
    return e.b.select(e.b.fcmp_ordered("<", x, e.floats(0.0)), e.b.fmul(x, e.floats(slope)), x)


def elu(e: Emitter, x: Any, alpha: float = 1.0, scale: float = 1.0, inner: float = 1.0) -> Any:
    """scale x, or where x is negative, scale alpha (exp(inner x) - 1): ELU, SELU and CELU."""
    below = e.b.fmul(expm1(e, e.b.fmul(x, e.floats(inner))), e.floats(scale * alpha))
    return e.b.select(e.b.fcmp_ordered("<", x, e.floats(0.0)), below, e.b.fmul(x, e.floats(scale)))


def mish(e: Emitter, x: Any) -> Any:
    """x tanh(log(1 + exp x)) = x n / (n + 2), n = exp(x) (exp(x) + 2)."""
    power = exp(e, e.b.select(e.b.fcmp_ordered(">", x, e.floats(LARGE)), e.floats(LARGE), x))
    n = e.b.fmul(power, e.b.fadd(power, e.floats(2.0)))
    return e.b.fmul(x, e.b.fdiv(n, e.b.fadd(n, e.floats(2.0))))


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sigmoid": sigmoid,
    "silu": lambda e, x: e.b.fmul(x, sigmoid(e, x)),
    "hardsigmoid": hardsigmoid,
    "hardswish": lambda e, x: e.b.fmul(x, hardsigmoid(e, x)),
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "tanh": tanh,
    "leaky_relu": leaky_relu,
    "elu": elu,
    "mish": mish,
}


def activate(e: Emitter, name: str, value: Any, low: Any, high: Any) -> Any:
    """The function of that name, or, with none, the value between two bounds.

    Numbers that a function takes stand behind its name, e.g. ``leaky_relu 0.1``.
    """
    if not name:
        return e.clamp(value, low, high)
    function, *numbers = name.split()
    return FUNCTIONS[function](e, value, *map(float, numbers))
