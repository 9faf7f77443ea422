"""Dimensions bound to numbers: by the shapes of arrays, and by the text of sizes that are no polynomials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rewriter.algebra.expressions import value_of
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
                value = value_of(name, self.bound)
            except ValueError:
                return None
            if value.denominator != 1:
                return None
            self.bound[name] = int(value)
        return self.bound[name]


def _contradiction(name: str, axis: int, n: int, size: Size, expected: int | None) -> EvaluationError:
    return EvaluationError(f"{name} has {n} entries along axis {axis}; expected {size} = {expected}")


def _text(shape: Sequence[Size]) -> str:
    return f"[{', '.join(map(str, shape))}]"
