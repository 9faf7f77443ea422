"""Sizes of axes: integer polynomials over named dimensions, so that dynamic shapes are exact.

A dimension such as ``batch`` or ``s0`` is a symbol that stands for an integer >= 1. Every size
that views, slices and concatenations can make of them (``s0 + 1``, ``2*s0``, ``batch*heads``) is
again a polynomial; anything else (``s0 // 2``) becomes a symbol of its own, named by its text.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from functools import lru_cache, reduce
from threading import Lock
from typing import SupportsIndex
from weakref import WeakValueDictionary

__all__ = ["ONE", "ZERO", "Size", "SizeLike", "product"]

Monomial = tuple[str, ...]
"""Sorted symbol names, repeated for powers; ``()`` is the constant."""

Terms = tuple[tuple[Monomial, int], ...]

_REMEMBERED = 1 << 14  # results of arithmetic that are kept


class Size:
    """An integer polynomial.

    Equal sizes are one object (until nothing refers to it), so comparing and hashing them is what it
    is for any object, and results of arithmetic can be remembered.

    Parameters
    ----------
    terms
        ``((monomial, coefficient), ...)``, sorted, without zero coefficients.

    Attributes
    ----------
    static
        Whether this is a plain number.

    Examples
    --------
    >>> s = Size.parse("s0")
    >>> print((s + 1) * (s - 1))
    s0*s0 - 1
    >>> (2 * s * s).divide(s)
    Size(2*s0)
    >>> (s + 1).divide(s) is None
    True
    """

    __slots__ = ("__weakref__", "_number", "static", "terms")

    terms: Terms
    static: bool
    _number: int

    def __new__(cls, terms: Terms = ()) -> Size:
        """Return the one size that has these terms."""
        found = _SIZES.get(terms)
        if found is None:
            with _LOCK:
                found = _SIZES.get(terms)
                if found is None:
                    found = _SIZES[terms] = cls._made(terms)
        return found

    @classmethod
    def _made(cls, terms: Terms) -> Size:
        self = super().__new__(cls)
        self.terms = terms
        self.static = all(not monomial for monomial, _ in terms)
        self._number = terms[0][1] if self.static and terms else 0
        return self

    def __reduce__(self) -> tuple[type[Size], tuple[Terms]]:
        """Pickle and copy by value."""
        return Size, (self.terms,)

    @staticmethod
    def of(value: SizeLike) -> Size:
        """Return ``value`` as a `Size`; a string is parsed."""
        if type(value) is Size:
            return value
        if isinstance(value, str):
            return Size.parse(value)
        return _number(int(value))

    @staticmethod
    def symbol(name: str) -> Size:
        """Return the size that is the named dimension."""
        return Size((((name,), 1),))

    @staticmethod
    def parse(text: str) -> Size:
        """Read ``+ - *``, unary minus, small powers, integers and names; else one opaque symbol."""
        try:
            return _from_ast(ast.parse(text, mode="eval").body)
        except (SyntaxError, ValueError, RecursionError):
            return Size.symbol(text)

    @property
    def symbols(self) -> frozenset[str]:
        """Names of the dimensions it depends on."""
        return frozenset(name for monomial, _ in self.terms for name in monomial)

    def __int__(self) -> int:
        if not self.static:
            raise ValueError(f"size {self} is not a number")
        return self._number

    def known(self) -> int | None:
        """Return the number, or None when it is symbolic."""
        return self._number if self.static else None

    def plain(self) -> int | str:
        """Return the number, or the polynomial as text: what JSON and people read."""
        return self._number if self.static else str(self)

    def __add__(self, other: SizeLike) -> Size:
        other = Size.of(other)
        if self.static and other.static:
            return _number(self._number + other._number)
        return _sum(self, other)

    __radd__ = __add__

    def __neg__(self) -> Size:
        return _number(-self._number) if self.static else _product(self, _MINUS_ONE)

    def __sub__(self, other: SizeLike) -> Size:
        other = Size.of(other)
        if self.static and other.static:
            return _number(self._number - other._number)
        return _sum(self, -other)

    def __rsub__(self, other: SizeLike) -> Size:
        return Size.of(other) - self

    def __mul__(self, other: SizeLike) -> Size:
        other = Size.of(other)
        if self.static and other.static:
            return _number(self._number * other._number)
        return _product(self, other)

    __rmul__ = __mul__

    def divide(self, other: SizeLike) -> Size | None:
        """Return the exact quotient, or None when ``other`` does not divide this polynomial."""
        other = Size.of(other)
        if other == ZERO:
            return None
        if self.static and other.static:
            quotient, rest = divmod(self._number, other._number)
            return None if rest else _number(quotient)
        return _quotient(self, other)

    def at_least(self, bound: SizeLike) -> bool:
        """Whether this is >= ``bound`` for every value (>= 1) of the dimensions: proved, else False."""
        excess = self - bound
        return excess._number >= 0 if excess.static else _never_negative(excess)

    def substitute(self, values: Mapping[str, SizeLike]) -> Size:
        """Replace dimensions by sizes."""
        if not self.symbols & values.keys():
            return self
        total = ZERO
        for monomial, c in self.terms:
            total += reduce(lambda a, n: a * Size.of(values.get(n, Size.symbol(n))), monomial, Size.of(c))
        return total

    def __str__(self) -> str:
        if self.static:
            return str(self._number)
        parts: list[str] = []
        for monomial, c in sorted(self.terms, key=lambda t: (-len(t[0]), t[0])):
            names = "*".join(monomial)
            size = names if names and abs(c) == 1 else f"{abs(c)}*{names}" if names else str(abs(c))
            parts.append(("- " if c < 0 else "+ ") + size)
        text = " ".join(parts)
        return text[2:] if text.startswith("+ ") else "-" + text[2:]

    def __repr__(self) -> str:
        return f"Size({self})"


SizeLike = Size | SupportsIndex | str

_SIZES: WeakValueDictionary[Terms, Size] = WeakValueDictionary()
_LOCK = Lock()


@lru_cache(_REMEMBERED)
def _number(number: int) -> Size:
    return Size((((), number),)) if number else Size()


ZERO = Size()
ONE = _number(1)
_MINUS_ONE = _number(-1)


def product(sizes: Iterable[Size]) -> Size:
    """Return the product of ``sizes``."""
    total = ONE
    for size in sizes:
        total = size if total is ONE else total * size
    return total


def _collect(terms: Iterable[tuple[Monomial, int]]) -> Size:
    total: dict[Monomial, int] = {}
    for monomial, c in terms:
        total[monomial] = total.get(monomial, 0) + c
    return Size(tuple(sorted(((m, c) for m, c in total.items() if c), key=lambda t: (len(t[0]), t[0]))))


@lru_cache(_REMEMBERED)
def _sum(a: Size, b: Size) -> Size:
    return _collect([*a.terms, *b.terms])


@lru_cache(_REMEMBERED)
def _product(a: Size, b: Size) -> Size:
    return _collect([(tuple(sorted(m + n)), c * d) for m, c in a.terms for n, d in b.terms])


@lru_cache(_REMEMBERED)
def _quotient(dividend: Size, divisor: Size) -> Size | None:
    lead, lead_c = divisor.terms[-1]
    rest, quotient = dividend, ZERO
    while rest.terms:
        monomial, c = rest.terms[-1]
        left = _cancel(monomial, lead)
        if left is None or c % lead_c:
            return None
        step = Size(((left, c // lead_c),))
        quotient, rest = quotient + step, rest - step * divisor
    return quotient


@lru_cache(_REMEMBERED)
def _never_negative(size: Size) -> bool:
    # each dimension is 1 + something non-negative: shift, then all coefficients must be >= 0
    shifted = size.substitute({name: Size.symbol(name) + 1 for name in size.symbols})
    return all(c >= 0 for _, c in shifted.terms)


def _cancel(monomial: Monomial, factor: Monomial) -> Monomial | None:
    left = list(monomial)
    for name in factor:
        if name not in left:
            return None
        left.remove(name)
    return tuple(left)


def _from_ast(node: ast.expr) -> Size:
    match node:
        case ast.Constant(value=int() as number):
            return Size.of(number)
        case ast.Name(id=name):
            return Size.symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_from_ast(operand)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _from_ast(left) + _from_ast(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _from_ast(left) - _from_ast(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _from_ast(left) * _from_ast(right)
        case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int() as power)) if 0 <= power <= 8:
            return product([_from_ast(left)] * power)
        case _:
            return Size.symbol(ast.unparse(node))
