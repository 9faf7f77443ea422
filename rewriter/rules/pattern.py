"""Patterns: formulas with named parts, written as Python expressions.

A pattern says what is computed, never how a graph spells it: sums and products match in any order and
grouping, quotients and roots are powers, views and casts are looked through, numbers are collected.

Examples
--------
>>> x, eps, d = tensor("x"), number("eps"), axis("d")
>>> print(x * rsqrt(mean(x**2, d) + eps))
x · (mean[d](x^2) + eps)^-1/2
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, TypeAlias

__all__ = [
    "Axis",
    "Call",
    "Choice",
    "Fold",
    "Known",
    "Pattern",
    "Power",
    "Product",
    "Softmax",
    "Sum",
    "Tensor",
    "any_of",
    "axis",
    "call",
    "constant",
    "max_",
    "maximum",
    "mean",
    "number",
    "parts_of",
    "rsqrt",
    "sigmoid",
    "softmax",
    "sqrt",
    "stack",
    "sum_",
    "tanh",
    "tensor",
]


class Pattern:
    """A formula that a value of the graph may be."""

    def __add__(self, other: Pattern | float) -> Pattern:
        return _sum(self, other)

    def __radd__(self, other: float) -> Pattern:
        return _sum(self, other)

    def __sub__(self, other: Pattern | float) -> Pattern:
        return _sum(self, -1.0 * other)

    def __rsub__(self, other: float) -> Pattern:
        return _sum(-1.0 * self, other)

    def __neg__(self) -> Pattern:
        return -1.0 * self

    def __mul__(self, other: Pattern | float) -> Pattern:
        return _product(self, other)

    def __rmul__(self, other: float) -> Pattern:
        return _product(self, other)

    def __truediv__(self, other: Pattern | float) -> Pattern:
        return _product(self, other**-1 if isinstance(other, Pattern) else 1.0 / other)

    def __rtruediv__(self, other: float) -> Pattern:
        return other * self**-1

    def __pow__(self, exponent: int | Fraction) -> Pattern:
        power = Fraction(exponent)
        if isinstance(self, Product) and self.unknown is None and (power.denominator == 1 or _bare(self)):
            parts = [Power(p.base, p.exponent * power) for p in self.parts]
            return Product(_collected(parts), self.coefficient ** float(power))
        return Product((Power(self, power),))


@dataclass(frozen=True)
class Axis:
    """An index that a pattern names: an axis of the result, or one that is summed away."""

    name: str


@dataclass(frozen=True)
class Tensor(Pattern):
    """Any value; the same one wherever the name stands.

    Parameters
    ----------
    name
        What the match calls it.
    over
        Axes that it may depend on, or None for any.
    constant
        Whether it must be a weight or another constant of the model.
    stacked
        The axis along which it must be put together of other values, one each; None for any value.
    """

    name: str
    over: tuple[Axis, ...] | None = None
    constant: bool = False
    stacked: Axis | None = None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Known(Pattern):
    """Any known number, as a term of a sum or a factor of a product."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Power:
    """A factor of a product."""

    base: Pattern
    exponent: Fraction = Fraction(1)

    def __str__(self) -> str:
        text = f"({self.base})" if isinstance(self.base, Sum) else str(self.base)
        return text if self.exponent == 1 else f"{text}^{self.exponent}"


@dataclass(frozen=True)
class Product(Pattern):
    """``coefficient · unknown · product of parts``; ``unknown`` names a number that may be anything."""

    parts: tuple[Power, ...]
    coefficient: float = 1.0
    unknown: str | None = None

    @cached_property
    def plain(self) -> Plain:
        """The product without choices in it, once for each way to choose, with the labels."""
        return _spread(self)

    def __str__(self) -> str:
        head = [f"{self.coefficient:g}"] * (self.coefficient != 1) + [self.unknown] * bool(self.unknown)
        return " · ".join([*(h for h in head if h), *map(str, self.parts)])


@dataclass(frozen=True)
class Sum(Pattern):
    """``sum of parts + number + unknown``; ``unknown`` names a number that may be anything."""

    parts: tuple[Pattern, ...]
    number: float = 0.0
    unknown: str | None = None

    @cached_property
    def plain(self) -> Plain:
        """The sum without choices in it, once for each way to choose, with the labels."""
        return _spread(self)

    def __str__(self) -> str:
        tail = [f"{self.number:g}"] * (self.number != 0) + [self.unknown] * bool(self.unknown)
        return " + ".join([*map(str, self.parts), *(t for t in tail if t)])


@dataclass(frozen=True)
class Call(Pattern):
    """A pointwise function, by its name in `rewriter.algebra.prims.POINTWISE`."""

    fn: str
    args: tuple[Pattern | float, ...]

    def __str__(self) -> str:
        return f"{self.fn}({', '.join(map(str, self.args))})"


@dataclass(frozen=True)
class Fold(Pattern):
    """``sum``, ``mean``, ``max`` or ``min`` of the body over axes; if ``kept``, of one value of the graph."""

    kind: str
    over: tuple[Axis, ...]
    body: Pattern
    kept: bool = False

    def __str__(self) -> str:
        return f"{self.kind}[{' '.join(a.name for a in self.over)}]({self.body})"


@dataclass(frozen=True)
class Softmax(Pattern):
    """Softmax of the body over one axis."""

    over: Axis
    body: Pattern

    def __str__(self) -> str:
        return f"softmax[{self.over.name}]({self.body})"


@dataclass(frozen=True)
class Choice(Pattern):
    """The first of several formulas that fits; the match says under ``name`` which it was."""

    name: str
    options: tuple[tuple[str, Pattern], ...]

    def __str__(self) -> str:
        return "(" + " | ".join(str(p) for _, p in self.options) + ")"


Plain: TypeAlias = "tuple[tuple[Product | Sum, Mapping[str, str]], ...]"
"""Products or sums without choices in them, each with the labels of the alternatives that it has."""


def tensor(name: str, over: tuple[Axis, ...] | None = None) -> Tensor:
    """Return a pattern for any value; ``over`` limits the axes that it may depend on."""
    return Tensor(name, over)


def constant(name: str, over: tuple[Axis, ...] | None = None) -> Tensor:
    """Return a pattern for a weight or another constant of the model."""
    return Tensor(name, over, constant=True)


def stack(name: str, along: Axis) -> Tensor:
    """Return a pattern for values that are stacked along an axis."""
    return Tensor(name, stacked=along)


def number(name: str) -> Known:
    """Return a pattern for a number that may be anything, inside a sum or a product."""
    return Known(name)


def axis(name: str) -> Axis:
    """Return a name for an index."""
    return Axis(name)


def any_of(name: str, **options: Pattern) -> Choice:
    """Return alternatives, tried in order; the match says under ``name`` which it was."""
    return Choice(name, tuple(options.items()))


def sum_(body: Pattern, *over: Axis, kept: bool = False) -> Fold:
    """Return the sum over axes; of a product, a contraction.

    ``kept`` leaves out products that a graph multiplies and sums at once, as matrices are.
    """
    return Fold("sum", over, body, kept)


def mean(body: Pattern, *over: Axis) -> Fold:
    """Return the mean over axes."""
    return Fold("mean", over, body)


def max_(body: Pattern, *over: Axis) -> Fold:
    """Return the largest value over axes."""
    return Fold("max", over, body)


def softmax(body: Pattern, over: Axis) -> Choice:
    """Return the softmax over an axis, as one operator or as ``exp / sum of exp``."""
    powers = Call("exp", (body,))
    return any_of("", operator=Softmax(over, body), quotient=powers / sum_(powers, over))


def call(fn: str, *args: Pattern | float) -> Call:
    """Return a pointwise function, by its name in `rewriter.algebra.prims.POINTWISE`."""
    return Call(fn, args)


def sqrt(body: Pattern) -> Pattern:
    """Return the square root."""
    return body ** Fraction(1, 2)


def rsqrt(body: Pattern) -> Pattern:
    """Return the reciprocal of the square root."""
    return body ** Fraction(-1, 2)


def tanh(body: Pattern) -> Call:
    """Return the hyperbolic tangent."""
    return Call("tanh", (body,))


def maximum(body: Pattern, other: Pattern | float) -> Choice | Call:
    """Return the larger of two values; with 0 it is also spelled ``relu``."""
    plain = Call("maximum", (body, other))
    return any_of("", relu=Call("relu", (body,)), maximum=plain) if other == 0 else plain


def sigmoid(body: Pattern) -> Choice:
    """Return the logistic function, as one operator or as ``1 / (1 + exp(-x))``."""
    return any_of("", operator=Call("sigmoid", (body,)), quotient=1.0 / (1.0 + Call("exp", (-body,))))


def _bare(pattern: Product) -> bool:
    """Whether a product is a power of one thing."""
    return len(pattern.parts) == 1 and pattern.coefficient == 1


def _sum(*parts: Pattern | float) -> Sum:
    terms: list[Pattern] = []
    total, unknown = 0.0, None
    for part in parts:
        match part:
            case Sum(inner, number_, name):
                terms += inner
                total += number_
                unknown = unknown or name
            case Known(name):
                unknown = name
            case Pattern():
                terms.append(part)
            case _:
                total += part
    return Sum(tuple(terms), total, unknown)


def _product(*parts: Pattern | float) -> Product:
    factors: list[Power] = []
    coefficient, unknown = 1.0, None
    for part in parts:
        match part:
            case Product(inner, own, name):
                factors += inner
                coefficient *= own
                unknown = unknown or name
            case Known(name):
                unknown = name
            case Pattern():
                factors.append(Power(part))
            case _:
                coefficient *= part
    return Product(_collected(factors), coefficient, unknown)


def _collected(factors: list[Power]) -> tuple[Power, ...]:
    """Return a product with each base once."""
    found: list[Power] = []
    for factor in factors:
        at = next((k for k, f in enumerate(found) if f.base == factor.base), None)
        if at is None:
            found.append(factor)
        else:
            found[at] = replace(factor, exponent=found[at].exponent + factor.exponent)
    return tuple(f for f in found if f.exponent)


def _spread(pattern: Product | Sum) -> Plain:
    parts = [p.base if isinstance(p, Power) else p for p in pattern.parts]
    options = [
        [(p.name, label, option) for label, option in p.options] if isinstance(p, Choice) else [("", "", p)]
        for p in parts
    ]
    if all(len(o) == 1 for o in options):
        return ((pattern, {}),)
    found = []
    for chosen in itertools.product(*options):
        labels = {name: label for name, label, _ in chosen if name}
        bases = [base for _, _, base in chosen]
        made = _product_of(pattern, bases) if isinstance(pattern, Product) else _sum_of(pattern, bases)
        found += [(one, {**labels, **more}) for one, more in made.plain]
    return tuple(found)


def _product_of(pattern: Product, bases: Sequence[Pattern]) -> Product:
    powers = [base**part.exponent for base, part in zip(bases, pattern.parts, strict=True)]
    made = _product(*powers, pattern.coefficient)
    return replace(made, unknown=made.unknown or pattern.unknown)


def _sum_of(pattern: Sum, parts: Sequence[Pattern]) -> Sum:
    made = _sum(*parts, pattern.number)
    return replace(made, unknown=made.unknown or pattern.unknown)


def parts_of(pattern: Pattern) -> Iterator[Any]:
    """Yield what a pattern is made of, one level down."""
    match pattern:
        case Product(parts):
            yield from (p.base for p in parts)
        case Sum(parts):
            yield from parts
        case Call(_, args):
            yield from (a for a in args if isinstance(a, Pattern))
        case Fold(body=body) | Softmax(body=body):
            yield body
        case Choice(_, options):
            yield from (p for _, p in options)
