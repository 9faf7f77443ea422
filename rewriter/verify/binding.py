"""Numbers for named dimensions: one choice per symbol, and every derived size follows from it."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from rewriter.algebra.sizes import Size

__all__ = ["Binding", "base_symbols", "bound_shape", "bound_size", "numpy_dtype"]

Binding = Mapping[str, int]
"""Dimension name -> number."""


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the numpy dtype of a graph's dtype name; bfloat16 and float8 come from ``ml_dtypes``."""
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        known: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return known


def base_symbols(sizes: Iterable[Size]) -> tuple[str, ...]:
    """Return the plain dimension names that sizes depend on, sorted.

    A symbol such as ``s0//2`` (see `rewriter.algebra.sizes`) is looked into: it depends on ``s0``.
    """
    found: set[str] = set()
    for symbol in {s for size in sizes for s in size.symbols}:
        tree, names = _parsed(symbol)
        found |= {symbol} if tree is None else {names.get(n, n) for n in _names(tree)} - _FUNCTIONS.keys()
    return tuple(sorted(found))


def bound_size(size: Size, binding: Binding) -> int:
    """Return the number a size stands for.

    Raises
    ------
    ValueError
        When it depends on a dimension that the binding lacks, or is negative.
    """
    values = {symbol: _evaluate(symbol, binding) for symbol in size.symbols}
    number = int(size.substitute(values))
    if number < 0:
        raise ValueError(f"size {size} is {number} when {dict(binding)}")
    return number


def bound_shape(shape: Iterable[Size], binding: Binding) -> tuple[int, ...]:
    """Return the numbers of a shape."""
    return tuple(bound_size(size, binding) for size in shape)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "floor": math.floor,
    "ceil": math.ceil,
    "ceiling": math.ceil,
    "Max": max,
    "Min": min,
    "max": max,
    "min": min,
    "Mod": lambda a, b: a % b,
    "FloorDiv": lambda a, b: a // b,
}


# exporters put dots into the names of dimensions, which Python reads as attributes
_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+")


def _parsed(symbol: str) -> tuple[ast.expr | None, Mapping[str, str]]:
    """Return a symbol that is an expression as a tree, with the names that stand for dotted ones in it."""
    if symbol.isidentifier() or _DOTTED.fullmatch(symbol):
        return None, {}
    names: dict[str, str] = {}

    def stand_in(match: re.Match[str]) -> str:
        names[f"dotted_{len(names)}"] = match[0]
        return f"dotted_{len(names) - 1}"

    try:
        return ast.parse(_DOTTED.sub(stand_in, symbol), mode="eval").body, names
    except SyntaxError:
        return None, {}


def _names(tree: ast.expr) -> set[str]:
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}


def _evaluate(symbol: str, binding: Binding) -> int:
    if symbol in binding:
        return binding[symbol]
    tree, names = _parsed(symbol)
    if tree is None:
        raise ValueError(f"no number was chosen for dimension {symbol!r}")
    inner = {name: _evaluate(names.get(name, name), binding) for name in _names(tree) - _FUNCTIONS.keys()}
    number = _number(tree, inner)
    if number != int(number):
        raise ValueError(f"size {symbol} is {number} when {dict(binding)}, not a whole number")
    return int(number)


def _number(node: ast.expr, binding: Binding) -> Fraction:
    match node:
        case ast.Constant(value=int() as number):
            return Fraction(number)
        case ast.Name(id=name):
            return Fraction(_evaluate(name, binding))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand, binding)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _number(left, binding), _number(right, binding)
            if isinstance(op, ast.Div | ast.FloorDiv | ast.Mod) and b == 0:
                raise ValueError(f"size {ast.unparse(node)} divides by zero when {dict(binding)}")
            return Fraction(_OPERATORS[type(op)](a, b))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS and args:
            return Fraction(_FUNCTIONS[name](*(_number(a, binding) for a in args)))
        case _:
            raise ValueError(f"size {ast.unparse(node)} is not an expression that can be computed")


_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Mod: lambda a, b: a % b,
}
