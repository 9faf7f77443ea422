"""What is added to the scores, taken apart: what hides keys, and what is merely added."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rewriter.algebra.term import Apply, Number, Term, leaves
from rewriter.sites.hiding import MASKING
from rewriter.sites.masks.coordinates import Linear
from rewriter.sites.masks.formulas import FALSE, TRUE, Formula, both, either, negate
from rewriter.sites.masks.reader import Reader, is_truth
from rewriter.sites.masks.values import Choice, Real, Value

__all__ = ["FAINT", "Conjunct", "Hidden", "all_of", "take_apart"]

FAINT = -9e3
"""A number at or below this hides a key from a query that sees another one.

Beside a score that is at most 8,000 lower, the weight is exactly 0 in every precision. Where a query sees
nothing else it hides nothing.
"""


@dataclass(frozen=True, eq=False)
class Conjunct:
    """A condition that every visible key fulfils, as it is in the graph and as a formula."""

    term: Term
    formula: Formula


@dataclass(frozen=True, eq=False)
class Hidden:
    """Keys are hidden, by adding ``fill``, where one of the conditions does not hold.

    Parameters
    ----------
    whole
        The term that is added, when it cannot be written with a part of the conditions.
    plain
        Nothing else is added by ``whole``.
    """

    conjuncts: tuple[Conjunct, ...]
    fill: float
    whole: Term | None = None
    plain: bool = True

    @property
    def faint(self) -> bool:
        """Whether keys are only hidden where another one is seen."""
        return self.fill > MASKING

    def without(self, dropped: Sequence[Conjunct]) -> Term | None:
        """Return the term that is added once some conditions are taken care of elsewhere."""
        left = [c.term for c in self.conjuncts if c not in dropped]
        if not left and self.plain:
            return None
        if self.whole is not None:
            return self.whole
        return Apply("where", (all_of(left), Number(0.0), Number(self.fill)), None)


def take_apart(bias: Term, reader: Reader) -> tuple[list[Hidden], list[Term]]:
    """Return what hides keys and the terms that are left; their sum is the bias."""
    hidden: list[Hidden] = []
    others: list[Term] = []
    stack = [bias]
    while stack:
        at = stack.pop()
        match at:
            case Apply("add", (a, b)):
                stack.extend((b, a))
            case Apply("where", (condition, Number(fill), rest)) if _hides(fill, rest):
                hidden.append(_condition(_not(condition), fill, reader))
                stack.append(rest)
            case Apply("where", (condition, rest, Number(fill))) if _hides(fill, rest):
                hidden.append(_condition(condition, fill, reader))
                stack.append(rest)
            case Apply("mul", (Apply("sub", (Number(1.0), seen)), Number(fill))) if (
                fill <= FAINT and is_truth(seen)
            ):
                hidden.append(_condition(seen, fill, reader))
            case Number(0.0):
                pass
            case _:
                found = _by_value(at, reader)
                if found is None:
                    others.append(at)
                elif found.conjuncts:
                    hidden.append(found)
    return hidden, others


def _hides(fill: float, rest: Term) -> bool:
    """Whether a number hides a key, and does not stand where a lower one would have hidden it for good."""
    return fill <= MASKING and not any(isinstance(t, Number) and t.value < fill for t in leaves(rest))


def all_of(conditions: Sequence[Term]) -> Term:
    """Return the conjunction as a term."""
    result = conditions[0]
    for other in conditions[1:]:
        result = Apply("and", (result, other), "bool")
    return result


def _condition(visible: Term, fill: float, reader: Reader) -> Hidden:
    return Hidden(tuple(Conjunct(t, reader.formula(t)) for t in _conjuncts(visible)), float(fill))


def _not(term: Term) -> Term:
    match term:
        case Apply("not", (inner,)):
            return inner
        case Apply("eq", (inner, Number(0.0))) if is_truth(inner):
            return inner
        case _:
            return Apply("not", (term,), "bool")


def _conjuncts(visible: Term) -> Iterator[Term]:
    match visible:
        case Apply("and", args):
            for arg in args:
                yield from _conjuncts(arg)
        case Apply("not", (Apply("or", args),)):
            for arg in args:
                yield from _conjuncts(_not(arg))
        case Apply("not", (Apply("not", (inner,)),)):
            yield from _conjuncts(inner)
        case Number(value) if value:
            return
        case _:
            yield visible


def _by_value(term: Term, reader: Reader) -> Hidden | None:
    """Read a term that is 0 or hides: ``log(seen)``, ``seen * 0 + (1 - seen) * fill``, nested choices."""
    value = reader.value(term)
    if value is None:
        return None
    numbers = list(_numbers(value))
    fills = [n for n in numbers if n is not None and n <= FAINT]
    if any(n is None or math.isnan(n) or (n > FAINT and n != 0) for n in numbers):
        return None
    if not fills:
        return Hidden((), 0.0)
    seen = Apply("gt", (term, Number(FAINT)), "bool")
    return Hidden((Conjunct(seen, _zero(value)),), float(max(fills)), term)


def _numbers(value: Value) -> Iterator[float | None]:
    match value:
        case Choice(_, a, b):
            yield from _numbers(a)
            yield from _numbers(b)
        case Real(number):
            yield number
        case Linear():
            yield value.known
        case _:
            yield None


def _zero(value: Value) -> Formula:
    """Return where a choice of numbers is 0."""
    match value:
        case Choice(condition, a, b):
            return both(either(negate(condition), _zero(a)), either(condition, _zero(b)))
        case Linear():
            return TRUE if value.known == 0 else FALSE
        case _:
            return FALSE
