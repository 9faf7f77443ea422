"""Dimensions bound to numbers: by the shapes of arrays, and by the text of sizes that are no polynomials."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from rewriter.algebra.sizes import Size

__all__ = ["Dimensions", "EvaluationError"]


_Equation = tuple[str, int, Size, int]
"""Name of an array, one of its axes, the size that is expected there, the number that is."""


class EvaluationError(ValueError):
    """A tensor or a size that the numbers given do not determine, or that they contradict."""


class Dimensions:
    """Numbers for the dimensions of one evaluation.

    Parameters
    ----------
    bound
        What is known from the start, by symbol; `match` adds to it.
    """

    def __init__(self, bound: Mapping[str, int] = {}) -> None:
        self.bound = dict(bound)
        self._numbers: dict[Size, int | None] = {}

    def match(self, shapes: Sequence[tuple[str, tuple[Size, ...], tuple[int, ...]]]) -> None:
        """Learn dimensions from ``(name, expected sizes, shape)``: an equation with one unknown is solved.

        Raises
        ------
        EvaluationError
            If a shape contradicts another one or a fixed size.
        """
        for name, expected, shape in shapes:
            if len(expected) != len(shape):
                raise EvaluationError(
                    f"{name} has shape {shape}; expected rank {len(expected)}: {_text(expected)}"
                )
        equations = [
            (name, axis, size, int(n))
            for name, expected, shape in shapes
            for axis, (size, n) in enumerate(zip(expected, shape, strict=True))
        ]
        left = self._learn(equations)
        while len(left) < len(equations):
            equations, left = left, self._learn(left)
        for name, axis, size, n in left:
            # several unknowns: what they are stays open, what the whole size is does not
            if self._numbers.setdefault(size, n) != n:
                raise _contradiction(name, axis, n, size, self._numbers[size])

    def _learn(self, equations: Sequence[_Equation]) -> list[_Equation]:
        """Check and solve what can be; return the equations with several unknowns."""
        left = []
        for name, axis, size, n in equations:
            found = self.number(size)
            if found is None:
                if not self._solve(size, n):
                    left.append((name, axis, size, n))
            elif found != n:
                raise _contradiction(name, axis, n, size, found)
        return left

    def number(self, size: Size) -> int | None:
        """Return the number that ``size`` is, or None when some dimension is unknown."""
        if size.static:
            return int(size)
        if size not in self._numbers:
            total = 0
            for monomial, coefficient in size.terms:
                factors = [self._symbol(name) for name in monomial]
                if None in factors:
                    return None
                total += coefficient * math.prod(f for f in factors if f is not None)
            self._numbers[size] = total
        return self._numbers[size]

    def require(self, size: Size, user: object) -> int:
        """Return the number that ``size`` is; raise an error that names its ``user`` when it is unknown."""
        number = self.number(size)
        if number is None:
            unknown = ", ".join(sorted(s for s in size.symbols if self._symbol(s) is None))
            raise EvaluationError(f"{user!r} needs the size {size}; give {unknown} in `sizes`")
        return number

    def _solve(self, size: Size, n: int) -> bool:
        unknown = [s for s in size.symbols if self._symbol(s) is None]
        if len(unknown) != 1:
            return False
        symbol, slope, rest = unknown[0], 0, 0
        for monomial, coefficient in size.terms:
            factor = coefficient * math.prod(self._symbol(s) or 0 for s in monomial if s != symbol)
            if monomial.count(symbol) > 1:
                return False
            if symbol in monomial:
                slope += factor
            else:
                rest += factor
        if not slope or (n - rest) % slope:
            return False
        self.bound[symbol] = (n - rest) // slope
        return True

    def _symbol(self, name: str) -> int | None:
        if name not in self.bound:
            try:
                value = _arithmetic(ast.parse(self._readable(name), mode="eval").body, self.bound)
            except (SyntaxError, ValueError, RecursionError, ZeroDivisionError):
                return None
            if value is None or value.denominator != 1:
                return None
            self.bound[name] = int(value)
        return self.bound[name]

    def _readable(self, text: str) -> str:
        """Return an opaque size with the dimensions in it whose names are no identifiers as numbers."""
        for name in sorted(self.bound, key=len, reverse=True):
            if not name.isidentifier() and name in text:
                text = re.sub(rf"(?<![\w.]){re.escape(name)}(?![\w.])", f"({self.bound[name]})", text)
        return text


def _contradiction(name: str, axis: int, n: int, size: Size, expected: int | None) -> EvaluationError:
    return EvaluationError(f"{name} has {n} entries along axis {axis}; expected {size} = {expected}")


_FUNCTIONS: dict[str, tuple[Callable[..., Fraction | int], int, int]] = {
    "min": (min, 2, 8),
    "max": (max, 2, 8),
    "floor": (math.floor, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "ceiling": (math.ceil, 1, 1),
    "floordiv": (lambda a, b: a // b, 2, 2),
    "mod": (lambda a, b: a % b, 2, 2),
}
"""Functions in the text of opaque sizes, with their fewest and most arguments."""


def _arithmetic(node: ast.expr, bound: Mapping[str, int]) -> Fraction | None:
    """Evaluate what `Size.parse` leaves opaque (``s0 // 2``, ``min(77, n)``, ``floor(h/2)``), or None."""
    match node:
        case ast.Constant(value=int() as number):
            return Fraction(number)
        case ast.Name(id=name):
            return Fraction(bound[name]) if name in bound else None
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = _arithmetic(operand, bound)
            return None if value is None else -value
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _arithmetic(left, bound), _arithmetic(right, bound)
            return None if a is None or b is None else _operate(op, a, b)
        case ast.Call(func=ast.Name(id=name), args=args) if name.lower() in _FUNCTIONS and args:
            known = [v for v in (_arithmetic(arg, bound) for arg in args) if v is not None]
            function, fewest, most = _FUNCTIONS[name.lower()]
            if len(known) != len(args) or not fewest <= len(args) <= most:
                return None
            return Fraction(function(*known))
        case _:
            return None


def _operate(op: ast.operator, a: Fraction, b: Fraction) -> Fraction | None:
    match op:
        case ast.Add():
            return a + b
        case ast.Sub():
            return a - b
        case ast.Mult():
            return a * b
        case ast.Div():
            return a / b
        case ast.FloorDiv():
            return Fraction(a // b)
        case ast.Mod():
            return a % b
        case _:
            return None


def _text(shape: Sequence[Size]) -> str:
    return f"[{', '.join(map(str, shape))}]"
