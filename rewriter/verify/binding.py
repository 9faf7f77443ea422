"""Numbers for named dimensions: one choice per symbol, and every derived size follows from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from rewriter.algebra.expressions import names_in, value_of
from rewriter.algebra.sizes import Size
from rewriter.errors import InputError

__all__ = ["Binding", "base_symbols", "bound_shape", "bound_size", "numpy_dtype", "parse_sizes"]

DIGITS = 10
"""A size has fewer."""

LARGEST = 1 << 31
"""Elements of a tensor that is made up."""

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


def parse_sizes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Read numbers for dimensions or axes: ``NAME=N,N,…`` (`rewriter.verify.dimensions`).

    >>> parse_sizes(["tokens=257,1025", "batch=1"])
    {'tokens': (257, 1025), 'batch': (1,)}

    Raises
    ------
    InputError
        When a text is something else, or a name stands twice.
    """
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, sign, numbers = (part.strip() for part in text.rpartition("="))
        parts = [n.strip() for n in numbers.split(",")]
        if not sign or not name or not all(n.isascii() and n.isdigit() and len(n) < DIGITS for n in parts):
            raise InputError(f"sizes {text!r}: expected NAME=N,N,… such as tokens=257,1025")
        if name in found:
            raise InputError(f"sizes {text!r}: {name} is given twice; write {name}=N,N,…")
        found[name] = tuple(map(int, parts))
    return found


def base_symbols(sizes: Iterable[Size]) -> tuple[str, ...]:
    """Return the plain dimension names that sizes depend on, sorted.

    A symbol such as ``s0//2`` (see `rewriter.algebra.sizes`) is looked into: it depends on ``s0``.
    """
    symbols = {s for size in sizes for s in size.symbols}
    return tuple(sorted(set().union(*map(names_in, symbols))))


def bound_size(size: Size, binding: Binding) -> int:
    """Return the number a size stands for.

    Raises
    ------
    ValueError
        When it depends on a dimension that the binding lacks, or is negative.
    """
    number = int(size.substitute({symbol: _whole(symbol, binding) for symbol in size.symbols}))
    if number < 0:
        raise ValueError(f"size {size} is {number} when {dict(binding)}")
    return number


def bound_shape(shape: Iterable[Size], binding: Binding) -> tuple[int, ...]:
    """Return the numbers of a shape.

    Raises
    ------
    ValueError
        As for `bound_size`.
    InputError
        When a tensor of this shape has more than `LARGEST` elements.
    """
    numbers = tuple(bound_size(size, binding) for size in shape)
    if math.prod(numbers) > LARGEST:
        raise InputError(
            f"a tensor of shape {list(numbers)[:8]} is too large to be made up; give real inputs with --data"
        )
    return numbers


def _whole(symbol: str, binding: Binding) -> int:
    value = value_of(symbol, binding)
    if value.denominator != 1:
        raise ValueError(f"size {symbol} is {value} when {dict(binding)}, not a whole number")
    return int(value)
