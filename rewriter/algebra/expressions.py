"""The text of sizes that are no polynomials (``s0 // 2``, ``min(77, n)``): what it names, and its value."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import Any

__all__ = ["names_in", "value_of"]

# exporters put dots into the names of dimensions, which Python reads as attributes
_DOTTED = r"[A-Za-z_]\w*(?:\.\w+)+"

_FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int]] = {
    "min": (min, 2, 8),
    "max": (max, 2, 8),
    "floor": (math.floor, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "ceiling": (math.ceil, 1, 1),
    "floordiv": (operator.floordiv, 2, 2),
    "mod": (operator.mod, 2, 2),
}
"""Functions by their names in lower case, with their fewest and most arguments."""

_OPERATORS: dict[type[ast.operator], Callable[[Fraction, Fraction], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


def names_in(text: str) -> frozenset[str]:
    """Return the dimensions that a text depends on; the text itself where it is a name and no expression."""
    tree, stand_ins = _parsed(text, ())
    return frozenset({text}) if tree is None else frozenset(stand_ins.get(n, n) for n in _names(tree))


def value_of(text: str, numbers: Mapping[str, int]) -> Fraction:
    """Return the value of a text.

    Parameters
    ----------
    text
        A name, or an expression of names, whole numbers, arithmetic and a few functions.
    numbers
        What the names stand for.

    Raises
    ------
    ValueError
        If a name has no number, something is divided by zero, or the text is no such expression.

    Examples
    --------
    >>> int(value_of("(s0 - 1) // 2", {"s0": 8}))
    3
    """
    if text in numbers:
        return Fraction(numbers[text])
    tree, stand_ins = _parsed(text, (n for n in numbers if not n.isidentifier()))
    named = {} if tree is None else {n: stand_ins.get(n, n) for n in _names(tree)}
    unknown = [text] if tree is None else sorted(set(named.values()) - numbers.keys())
    if tree is None or unknown:
        raise ValueError(f"no number was chosen for dimension {unknown[0]!r}")
    return _value(tree, {identifier: numbers[name] for identifier, name in named.items()})


def _parsed(text: str, odd: Iterable[str]) -> tuple[ast.expr | None, Mapping[str, str]]:
    """Return an expression as a tree and its identifiers for names that are none; a mere name gives None."""
    longest_first = [re.escape(name) for name in sorted(odd, key=len, reverse=True)]
    pattern = rf"(?<![\w.])(?:{'|'.join([*longest_first, _DOTTED])})(?![\w.])"
    stand_ins: dict[str, str] = {}

    def stand_in(match: re.Match[str]) -> str:
        identifier = f"dimension_{match[0].encode().hex()}_"
        stand_ins[identifier] = match[0]
        return identifier

    if text.isidentifier() or re.fullmatch(_DOTTED, text):
        return None, {}
    try:
        return ast.parse(re.sub(pattern, stand_in, text), mode="eval").body, stand_ins
    except (SyntaxError, RecursionError, MemoryError):
        return None, {}


def _names(tree: ast.expr) -> set[str]:
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id.lower() not in _FUNCTIONS}


def _value(node: ast.expr, numbers: Mapping[str, int]) -> Fraction:
    match node:
        case ast.Constant(value=int() as number):
            return Fraction(number)
        case ast.Name(id=name) if name in numbers:
            return Fraction(numbers[name])
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, numbers)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            a, b = _value(left, numbers), _value(right, numbers)
            if isinstance(op, ast.Div | ast.FloorDiv | ast.Mod) and b == 0:
                raise ValueError(f"size {ast.unparse(node)} divides by zero when {dict(numbers)}")
            return Fraction(_OPERATORS[type(op)](a, b))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name.lower() in _FUNCTIONS:
            function, fewest, most = _FUNCTIONS[name.lower()]
            if fewest <= len(args) <= most:
                return Fraction(function(*(_value(arg, numbers) for arg in args)))
    raise ValueError(f"size {ast.unparse(node)} is not an expression that can be computed")
