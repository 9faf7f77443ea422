"""Sums and products, taken apart: every way to read a value as a sum, or a product, of so many parts.

A graph groups ``a + b + c`` as it likes, and ``a + b`` may be one thing to a pattern or two. A *cut* is
one way to stop: parts that are not looked into any further, with their coefficients or exponents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from rewriter.algebra.index import Atom, einsum_index, resolve
from rewriter.algebra.prims import Einsum, Map
from rewriter.algebra.sizes import Size
from rewriter.algebra.term import Apply, Number, Position, Read, Term, origin, outermost

__all__ = [
    "Factors",
    "Terms",
    "TooManyWaysError",
    "bounded",
    "contraction",
    "identical",
    "opened",
    "products",
    "sums",
]

_DEEP = 8
"""How many operators one sum or product may be spelled with, one inside the other."""


_MOST = 10_000
"""How often values are looked into to match one formula with one value."""

_left: ContextVar[list[int] | None] = ContextVar("left", default=None)


class TooManyWaysError(Exception):
    """A value can be taken apart in too many ways to try them all: a product of products of sums, say."""


@contextmanager
def bounded() -> Iterator[None]:
    """Let `opened` raise `TooManyWaysError` when a block has called it too often."""
    token = _left.set([_MOST])
    try:
        yield
    finally:
        _left.reset(token)


def _count() -> None:
    left = _left.get()
    if left is not None:
        left[0] -= 1
        if left[0] < 0:
            raise TooManyWaysError


@dataclass(frozen=True)
class Terms:
    """``sum of coefficient · part + number``."""

    parts: tuple[tuple[Term, float], ...]
    number: float = 0.0


@dataclass(frozen=True)
class Factors:
    """``coefficient · product of part ** exponent · product of size ** exponent``."""

    parts: tuple[tuple[Term, Fraction], ...]
    coefficient: float = 1.0
    sizes: tuple[tuple[Size, Fraction], ...] = ()


_Ways = TypeVar("_Ways", Terms, Factors)


def opened(term: Term) -> Term:
    """Return a term one operator deep, behind views, copies and casts."""
    _count()
    if not isinstance(term, Read):
        return _opened(term)
    if term.opened is None or term.opened[0] != Atom.cuts:
        found = _opened(term)
        term.opened = Atom.cuts, found, {}
    return term.opened[1]


def _opened(term: Term) -> Term:
    if isinstance(term, Read):
        term = outermost(term)
    if isinstance(term, Position) and not term.value.terms and term.value.start.static:
        return Number(float(int(term.value.start)))
    return term


def identical(a: Term, b: Term, deep: int = _DEEP) -> bool:
    """Whether two terms are the same tensor at the same index, or are computed alike from such."""
    if a is b:
        return True
    match a, b:
        case Read(), Read():
            p, q = origin(a), origin(b)
            if p.prim is q.prim:
                return resolve(p.index) == resolve(q.index)
            if not deep or type(p.prim.form) is not type(q.prim.form) or not isinstance(p.prim.form, Map):
                return False
            return identical(opened(p), opened(q), deep - 1)
        case Number(v), Number(w):
            return v == w
        case Apply(f, xs), Apply(g, ys):
            return (
                f == g
                and len(xs) == len(ys)
                and all(identical(x, y, deep) for x, y in zip(xs, ys, strict=True))
            )
    return False


def _same_read(a: Term, b: Term) -> bool:
    """Whether a value is added to itself; what is computed twice is not looked for."""
    return isinstance(a, Read) and isinstance(b, Read) and a.prim is b.prim and identical(a, b)


def contraction(term: Term) -> tuple[Term, list[Atom]] | None:
    """Return what a sum over axes runs over, and the atoms of these axes; None if it is no sum."""
    at = opened(term)
    if not isinstance(at, Read) or not isinstance(at.prim.form, Einsum):
        return None
    body, bound = _summands(at, at.prim.form)
    return (body, bound) if bound else None


def _summands(at: Read, form: Einsum) -> tuple[Term, list[Atom]]:
    indices, bound = einsum_index(form, at.prim.shape, at.index, at.prim.inputs)
    operands: list[Term] = [Read(x, i) for x, i in zip(at.prim.inputs, indices, strict=True)]
    body = operands[0]
    for other in operands[1:]:
        body = Apply("mul", (body, other), at.prim.dtype)
    return body, bound


def sums(term: Term, count: int, deep: int = _DEEP) -> Iterator[Terms]:
    """Yield a value as sums of ``count`` parts and a number, coarse ones first."""
    at = opened(term)
    yield from _kept(term, ("sum", count, deep), lambda: _sums(term, at, count, deep))


def _sums(term: Term, at: Term, count: int, deep: int) -> Iterator[Terms]:
    if isinstance(at, Number):
        if count == 0:
            yield Terms((), at.value)
        return
    if count == 1:
        yield Terms(((term, 1.0),))
    if deep and isinstance(at, Apply):
        yield from _summed(at, count, deep - 1)


def _summed(at: Apply, count: int, deep: int) -> Iterator[Terms]:
    match at:
        case Apply("add" | "sub" as fn, (a, b)):
            sign = 1.0 if fn == "add" else -1.0
            if fn == "add" and _same_read(a, b):
                yield from (_times(s, 2.0) for s in sums(a, count, deep))
            for own in range(count + 1):
                for left in sums(a, own, deep):
                    yield from (_added(left, _times(right, sign)) for right in sums(b, count - own, deep))
        case Apply("neg", (a,)):
            yield from (_times(s, -1.0) for s in sums(a, count, deep))
        case Apply("mul" | "div" as fn, (a, b)):
            for x, other in ((a, b), (b, a)) if fn == "mul" else ((a, b),):
                factor = _number(other) if fn == "mul" else 1 / (_number(other) or math.nan)
                if factor is not None and not math.isnan(factor):
                    yield from (_times(s, factor) for s in sums(x, count, deep))


def _number(term: Term) -> float | None:
    at = opened(term)
    return at.value if isinstance(at, Number) else None


def products(term: Term, count: int, deep: int = _DEEP) -> Iterator[Factors]:
    """Yield a value as products of powers of ``count`` different parts, coarse ones first."""
    at = opened(term)
    yield from _kept(term, ("product", count, deep), lambda: _products(term, at, count, deep))


def _kept(term: Term, what: tuple[str, int, int], ways: Callable[[], Iterator[_Ways]]) -> Iterable[_Ways]:
    """Return the ways to read an opened value; those of a part are kept with it, until an atom is cut."""
    if not isinstance(term, Read) or what[2] == _DEEP:
        return ways()
    assert term.opened is not None, "it was just opened"
    cuts, _, known = term.opened
    found: tuple[_Ways, ...] | None = known.get(what)
    if found is None:
        found = tuple(ways())
        if cuts == Atom.cuts:
            known[what] = found
    return found


def _products(term: Term, at: Term, count: int, deep: int) -> Iterator[Factors]:
    match at:
        case Number(value):
            if count == 0:
                yield Factors((), value)
            return
        case Position(value):
            if count == 0 and not value.terms:
                yield Factors((), 1.0, ((value.start, Fraction(1)),))
            return
    if count == 1:
        yield Factors(((term, Fraction(1)),))
    if deep:
        yield from _taken_apart(at, count, deep - 1)


def _taken_apart(at: Term, count: int, deep: int) -> Iterator[Factors]:
    match at:
        case Apply("mul", (a, b)):
            yield from _multiplied(a, b, count, 1, deep)
        case Apply("div", (a, b)):
            yield from _multiplied(a, b, count, -1, deep)
        case Apply("neg" | "add" as fn, (a, *others)) if all(_same_read(a, b) for b in others):
            yield from (_scaled(f, -1.0 if fn == "neg" else 2.0) for f in products(a, count, deep))
        case Apply("reciprocal", (a,)):
            yield from _raised(a, count, Fraction(-1), deep)
        case Apply("sqrt" | "rsqrt" as fn, (a,)):
            yield from _raised(a, count, Fraction(1 if fn == "sqrt" else -1, 2), deep)
        case Apply("pow", (a, b)):
            power = _number(b)
            if power is not None and (2 * power).is_integer():
                yield from _raised(a, count, Fraction(power), deep)
        case Read(prim=prim) if isinstance(prim.form, Einsum):
            body, bound = _summands(at, prim.form)
            if not bound and isinstance(body, Apply):
                yield from _taken_apart(body, count, deep)


def _multiplied(a: Term, b: Term, count: int, exponent: int, deep: int) -> Iterator[Factors]:
    for own in range(count + 1):
        # a part that both sides have counts once
        for other in range(count - own, count + 1):
            for left in products(a, own, deep):
                for right in products(b, other, deep):
                    powered = _power(right, Fraction(exponent))
                    if powered is not None:
                        found = _joined(left, powered)
                        if len(found.parts) == count:
                            yield found


def _raised(a: Term, count: int, exponent: Fraction, deep: int) -> Iterator[Factors]:
    """Yield a power. A root is one of a single part, with a positive number before it, and of no square."""
    for inner in products(a, count, deep):
        plain = count == 1 and not inner.sizes and inner.coefficient > 0 and inner.parts[0][1] == 1
        raised = _power(inner, exponent) if exponent.denominator == 1 or plain else None
        if raised is not None:
            yield raised


def _times(terms: Terms, factor: float) -> Terms:
    return Terms(tuple((t, c * factor) for t, c in terms.parts), terms.number * factor)


def _added(a: Terms, b: Terms) -> Terms:
    return Terms(a.parts + b.parts, a.number + b.number)


def _scaled(factors: Factors, by: float) -> Factors:
    return Factors(factors.parts, factors.coefficient * by, factors.sizes)


def _power(factors: Factors, exponent: Fraction) -> Factors | None:
    if exponent == 1:
        return factors
    if exponent < 0 and not factors.coefficient:
        return None
    return Factors(
        tuple((t, e * exponent) for t, e in factors.parts),
        factors.coefficient ** float(exponent),
        tuple((n, e * exponent) for n, e in factors.sizes),
    )


def _joined(a: Factors, b: Factors) -> Factors:
    parts = list(a.parts)
    for term, exponent in b.parts:
        at = next((k for k, (t, _) in enumerate(parts) if identical(t, term)), None)
        if at is None:
            parts.append((term, exponent))
        else:
            parts[at] = (term, parts[at][1] + exponent)
    kept = tuple((t, e) for t, e in parts if e)
    return Factors(kept, a.coefficient * b.coefficient, a.sizes + b.sizes)
