"""Sizes of axes: integer polynomials over named dimensions, so that dynamic shapes are exact.

A dimension such as ``batch`` or ``s0`` is a symbol that stands for an integer >= 1. Every size
that views, slices and concatenations can make of them (``s0 + 1``, ``2*s0``, ``batch*heads``) is
again a polynomial; anything else (``s0 // 2``) becomes a symbol of its own, named by its text.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import SupportsIndex

__all__ = ["ONE", "ZERO", "Size", "SizeLike", "product"]

Monomial = tuple[str, ...]
"""Sorted symbol names, repeated for powers; ``()`` is the constant."""


@dataclass(frozen=True, slots=True)
class Size:
    """An integer polynomial.

    Parameters
    ----------
    terms
        ``((monomial, coefficient), ...)``, sorted, without zero coefficients.

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

    terms: tuple[tuple[Monomial, int], ...] = ()

    @staticmethod
    def of(value: SizeLike) -> Size:
        """Return ``value`` as a `Size`; a string is parsed."""
        if isinstance(value, Size):
            return value
        if isinstance(value, str):
            return Size.parse(value)
        number = int(value)
        return Size((((), number),)) if number else ZERO

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
    def static(self) -> bool:
        """Whether this is a plain number."""
        return all(not monomial for monomial, _ in self.terms)

    @property
    def symbols(self) -> frozenset[str]:
        """Names of the dimensions it depends on."""
        return frozenset(name for monomial, _ in self.terms for name in monomial)

    def __int__(self) -> int:
        if not self.static:
            raise ValueError(f"size {self} is not a number")
        return self.terms[0][1] if self.terms else 0

    def known(self) -> int | None:
        """Return the number, or None when it is symbolic."""
        return int(self) if self.static else None

    def plain(self) -> int | str:
        """Return the number, or the polynomial as text: what JSON and people read."""
        return int(self) if self.static else str(self)

    def __add__(self, other: SizeLike) -> Size:
        if (other := Size.of(other)) is ZERO or not other.terms:
            return self
        return _collect([*self.terms, *other.terms])

    __radd__ = __add__

    def __neg__(self) -> Size:
        return Size(tuple((monomial, -c) for monomial, c in self.terms))

    def __sub__(self, other: SizeLike) -> Size:
        return self + -Size.of(other)

    def __rsub__(self, other: SizeLike) -> Size:
        return Size.of(other) - self

    def __mul__(self, other: SizeLike) -> Size:
        other = Size.of(other)
        if other == ONE:
            return self
        if self == ONE:
            return other
        return _collect([(tuple(sorted(m + n)), c * d) for m, c in self.terms for n, d in other.terms])

    __rmul__ = __mul__

    def divide(self, other: SizeLike) -> Size | None:
        """Return the exact quotient, or None when ``other`` does not divide this polynomial."""
        other = Size.of(other)
        if not other.terms:
            return None
        if other == ONE:
            return self
        lead, lead_c = other.terms[-1]
        rest, quotient = self, ZERO
        while rest.terms:
            monomial, c = rest.terms[-1]
            left = _cancel(monomial, lead)
            if left is None or c % lead_c:
                return None
            step = Size(((left, c // lead_c),))
            quotient, rest = quotient + step, rest - step * other
        return quotient

    def at_least(self, bound: SizeLike) -> bool:
        """Whether this is >= ``bound`` for every value (>= 1) of the dimensions: proved, else False."""
        excess = self - Size.of(bound)
        # each dimension is 1 + something non-negative: shift, then all coefficients must be >= 0
        shifted = excess.substitute({name: Size.symbol(name) + 1 for name in excess.symbols})
        return all(c >= 0 for _, c in shifted.terms)

    def substitute(self, values: Mapping[str, SizeLike]) -> Size:
        """Replace dimensions by sizes."""
        if not self.symbols & values.keys():
            return self
        total = ZERO
        for monomial, c in self.terms:
            total += reduce(lambda a, n: a * Size.of(values.get(n, Size.symbol(n))), monomial, Size.of(c))
        return total

    def __str__(self) -> str:
        if not self.terms:
            return "0"
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

ZERO = Size()
ONE = Size((((), 1),))


def product(sizes: Iterable[Size]) -> Size:
    """Return the product of ``sizes``."""
    return reduce(lambda a, b: a * b, sizes, ONE)


def _collect(terms: Iterable[tuple[Monomial, int]]) -> Size:
    total: dict[Monomial, int] = {}
    for monomial, c in terms:
        total[monomial] = total.get(monomial, 0) + c
    return Size(tuple(sorted(((m, c) for m, c in total.items() if c), key=lambda t: (len(t[0]), t[0]))))


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
