"""What a number in a mask can be: made of positions, chosen by conditions, or not looked into."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rewriter.algebra.evaluate import apply_pointwise
from rewriter.algebra.sizes import Size
from rewriter.sites.masks.coordinates import Linear, Positions
from rewriter.sites.masks.formulas import (
    FALSE,
    TRUE,
    AtMost,
    Congruent,
    Formula,
    both,
    either,
    negate,
)

__all__ = ["Choice", "Extreme", "Real", "Residue", "Value", "applied", "choose", "compared", "number"]


@dataclass(frozen=True, slots=True)
class Real:
    """A number that is no integer, an infinity, or NaN."""

    value: float


@dataclass(frozen=True, slots=True)
class Residue:
    """``value % modulus`` of a difference of positions."""

    value: Linear
    modulus: Size


@dataclass(frozen=True, slots=True)
class Extreme:
    """The larger of two values, or the smaller."""

    larger: bool
    a: Value
    b: Value


@dataclass(frozen=True, slots=True)
class Choice:
    """One value where a condition holds, another where it does not."""

    condition: Formula
    a: Value
    b: Value


Value = Linear | Real | Residue | Extreme | Choice

MOST = 128
"""Values that would have more parts are not looked into."""


class _TooMuchError(Exception):
    """A value that is not looked into."""


def number(value: float) -> Value:
    """Return a number."""
    return Linear.number(int(value)) if math.isfinite(value) and value == int(value) else Real(value)


def choose(condition: Formula, a: Value, b: Value) -> Value:
    """Return the choice, or what it comes to."""
    a, b = _under(condition, a), _under(negate(condition), b)
    if condition == TRUE or a == b:
        return a
    return b if condition == FALSE else Choice(condition, a, b)


def _under(condition: Formula, value: Value) -> Value:
    """Return what a value comes to where a condition holds."""
    if not isinstance(value, Choice):
        return value
    if value.condition == condition:
        return _under(condition, value.a)
    if value.condition == negate(condition):
        return _under(condition, value.b)
    a, b = _under(condition, value.a), _under(condition, value.b)
    return a if a == b else Choice(value.condition, a, b)


def applied(fn: str, args: Sequence[Value], positions: Positions) -> Value | None:
    """Return a pointwise function of values; None if that is not understood."""
    if fn in ("abs", "relu"):
        other = applied("neg", args, positions) if fn == "abs" else Linear.number(0)
        return None if other is None else applied("maximum", [args[0], other], positions)
    budget = [MOST]

    def walk(parts: list[Value]) -> Value:
        budget[0] -= 1
        if budget[0] < 0:
            raise _TooMuchError
        for at, part in enumerate(parts):
            if isinstance(part, Choice):
                chosen = [walk([*parts[:at], x, *parts[at + 1 :]]) for x in (part.a, part.b)]
                return choose(part.condition, chosen[0], chosen[1])
        for at, part in enumerate(parts):
            if isinstance(part, Extreme):
                upward = _rises(fn, at, parts)
                inner = [walk([*parts[:at], x, *parts[at + 1 :]]) for x in (part.a, part.b)]
                return Extreme(part.larger == upward, inner[0], inner[1])
        found = _of_leaves(fn, parts, positions)
        if found is None:
            raise _TooMuchError
        return found

    try:
        return walk(list(args))
    except _TooMuchError:
        return None


def _rises(fn: str, at: int, parts: Sequence[Value]) -> bool:
    """Whether a function grows with one operand (True) or falls with it (False)."""
    if fn in ("add", "maximum", "minimum", "floor") or (fn in ("sub", "floordiv") and at == 0):
        return True
    if fn == "neg" or (fn == "sub" and at == 1):
        return False
    if fn == "mul":
        factor = parts[1 - at]
        known = factor.known if isinstance(factor, Linear) else None
        if known is not None:
            return known >= 0
    raise _TooMuchError


def _of_leaves(fn: str, parts: Sequence[Value], positions: Positions) -> Value | None:
    numbers = [_known(p) for p in parts]
    if None not in numbers:
        return _computed(fn, [n for n in numbers if n is not None])
    if fn in ("maximum", "minimum") and not any(isinstance(p, Residue) for p in parts):
        return Extreme(fn == "maximum", parts[0], parts[1])
    rule = _LINEAR.get(fn)
    linear = [p for p in parts if isinstance(p, Linear)]
    return None if rule is None or len(linear) != len(parts) else rule(linear, positions)


def _known(value: Value) -> float | None:
    if isinstance(value, Real):
        return value.value
    return value.known if isinstance(value, Linear) else None


def _computed(fn: str, numbers: Sequence[float]) -> Value | None:
    if fn == "cast":
        return Linear.number(int(numbers[0])) if math.isfinite(numbers[0]) else None
    try:
        return number(float(apply_pointwise(fn, [np.asarray(float(n)) for n in numbers])))
    except (KeyError, TypeError, OverflowError):
        return None


def _product(parts: Sequence[Linear], _: Positions) -> Value | None:
    a, b = parts
    if not b.terms:
        return a.times(b.start)
    return b.times(a.start) if not a.terms else None


def _quotient(parts: Sequence[Linear], positions: Positions) -> Value | None:
    by = parts[1].start
    return positions.floor(parts[0], by) if not parts[1].terms and by.at_least(1) else None


def _remainder(parts: Sequence[Linear], positions: Positions) -> Value | None:
    by = parts[1].start
    if parts[1].terms or not by.at_least(1):
        return None
    found = positions.modulo(parts[0], by)
    return Residue(parts[0], by) if found is None else found


_LINEAR: dict[str, Callable[[Sequence[Linear], Positions], Value | None]] = {
    "add": lambda parts, _: parts[0].plus(parts[1]),
    "sub": lambda parts, _: parts[0].plus(parts[1].times(Size.of(-1))),
    "neg": lambda parts, _: parts[0].times(Size.of(-1)),
    "mul": _product,
    "floordiv": _quotient,
    "mod": _remainder,
    "floor": lambda parts, _: parts[0],
    "cast": lambda parts, _: parts[0],
}


def compared(fn: str, a: Value, b: Value, positions: Positions) -> Formula | None:
    """Return the comparison ``a fn b`` of two values; None if that is not understood."""
    if fn in ("gt", "ge"):
        return compared({"gt": "lt", "ge": "le"}[fn], b, a, positions)
    if fn in ("lt", "ne"):
        opposite = compared("le", b, a, positions) if fn == "lt" else compared("eq", a, b, positions)
        return None if opposite is None else negate(opposite)
    if _has_nan(a) or _has_nan(b):
        return None
    return _walked(fn, a, b, positions, [MOST])


def _has_nan(value: Value) -> bool:
    match value:
        case Real(number_):
            return math.isnan(number_)
        case Choice(_, a, b) | Extreme(_, a, b):
            return _has_nan(a) or _has_nan(b)
        case _:
            return False


def _walked(fn: str, a: Value, b: Value, positions: Positions, budget: list[int]) -> Formula | None:
    """Return ``a fn b`` for ``le`` and ``eq``."""
    budget[0] -= 1
    if budget[0] < 0:
        return None
    for at, part in enumerate((a, b)):
        if not isinstance(part, Choice | Extreme):
            continue
        sides = [(part.a, b), (part.b, b)] if at == 0 else [(a, part.a), (a, part.b)]
        if isinstance(part, Extreme) and fn == "eq":
            sides_of = [_walked("le", x, y, positions, budget) for x, y in ((a, b), (b, a))]
            return None if None in sides_of else both(*(s for s in sides_of if s is not None))
        found = [_walked(fn, x, y, positions, budget) for x, y in sides]
        if found[0] is None or found[1] is None:
            return None
        if isinstance(part, Choice):
            return both(either(negate(part.condition), found[0]), either(part.condition, found[1]))
        return both(*(found[0], found[1])) if part.larger == (at == 0) else either(found[0], found[1])
    return _of_numbers(fn, a, b)


def _of_numbers(fn: str, a: Value, b: Value) -> Formula | None:
    x, y = _known(a), _known(b)
    if x is not None and y is not None:
        return TRUE if (x <= y if fn == "le" else x == y) else FALSE
    if isinstance(a, Residue) or isinstance(b, Residue):
        return _congruent(a, b) if fn == "eq" else None
    if isinstance(a, Real) or isinstance(b, Real):
        return _against_real(fn, a, b)
    if not isinstance(a, Linear) or not isinstance(b, Linear):
        return None
    difference = a.plus(b.times(Size.of(-1)))
    if fn == "le":
        return AtMost(difference)
    return both(AtMost(difference), AtMost(difference.times(Size.of(-1))))


def _congruent(a: Value, b: Value) -> Formula | None:
    residue, other = (a, b) if isinstance(a, Residue) else (b, a)
    if not isinstance(residue, Residue) or not isinstance(other, Linear) or other.terms:
        return None
    if not other.start.at_least(0) or not (residue.modulus - 1 - other.start).at_least(0):
        return None
    return Congruent(Linear(residue.value.start - other.start, residue.value.terms), residue.modulus)


def _against_real(fn: str, a: Value, b: Value) -> Formula | None:
    """Compare a whole number with one that is not."""
    if fn == "eq":
        return FALSE
    x, y = _known(a), _known(b)
    if isinstance(a, Linear) and y is not None:
        if math.isinf(y):
            return TRUE if y > 0 else FALSE
        return AtMost(Linear(a.start - math.floor(y), a.terms))
    if isinstance(b, Linear) and x is not None:
        if math.isinf(x):
            return TRUE if x < 0 else FALSE
        return AtMost(Linear(Size.of(math.ceil(x)), ()).plus(b.times(Size.of(-1))))
    return None
