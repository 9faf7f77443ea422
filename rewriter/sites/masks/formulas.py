"""Conditions on a query and a key as formulas, and their clauses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from rewriter.algebra.sizes import Size
from rewriter.algebra.term import Term, same
from rewriter.sites.masks.coordinates import Linear, Positions

__all__ = [
    "FALSE",
    "TRUE",
    "AtMost",
    "Clause",
    "Congruent",
    "Every",
    "Formula",
    "Literal",
    "Opaque",
    "Same",
    "Some",
    "both",
    "clauses",
    "either",
    "negate",
]


@dataclass(frozen=True, slots=True)
class AtMost:
    """``value <= 0``."""

    value: Linear


@dataclass(frozen=True, slots=True)
class Congruent:
    """``value`` is a multiple of ``modulus``; is none if negated."""

    value: Linear
    modulus: Size
    negated: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Same:
    """An id of the query equals an id of the key; differs if negated."""

    query: Term
    key: Term
    negated: bool = False

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same) or self.negated != other.negated:
            return False
        return same(self.query, other.query) and same(self.key, other.key)

    def __hash__(self) -> int:
        return hash((Same, self.negated))


@dataclass(frozen=True, slots=True, eq=False)
class Opaque:
    """A condition that is not looked into."""

    term: Term
    negated: bool = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and self.negated == other.negated and same(self.term, other.term)

    def __hash__(self) -> int:
        return hash((Opaque, self.negated))


@dataclass(frozen=True, slots=True)
class Every:
    """All parts hold; true if there are none."""

    parts: tuple[Formula, ...]


@dataclass(frozen=True, slots=True)
class Some:
    """One of the parts holds, or more; false if there are none."""

    parts: tuple[Formula, ...]


Literal = AtMost | Congruent | Same | Opaque
Formula = Literal | Every | Some
Clause = tuple[Literal, ...]
"""Literals of which at least one holds."""

TRUE = Every(())
FALSE = Some(())

MOST = 64
"""Formulas with more clauses are not looked into."""


def both(*parts: Formula) -> Formula:
    """Return the conjunction, true parts left out."""
    flat = [q for p in parts for q in (p.parts if isinstance(p, Every) else (p,))]
    if FALSE in flat:
        return FALSE
    return flat[0] if len(flat) == 1 else Every(tuple(flat))


def either(*parts: Formula) -> Formula:
    """Return the disjunction, false parts left out."""
    flat = [q for p in parts for q in (p.parts if isinstance(p, Some) else (p,))]
    if TRUE in flat:
        return TRUE
    return flat[0] if len(flat) == 1 else Some(tuple(flat))


def negate(formula: Formula) -> Formula:
    """Return the opposite."""
    match formula:
        case Every(parts):
            return either(*map(negate, parts))
        case Some(parts):
            return both(*map(negate, parts))
        case AtMost(value):
            return AtMost(Linear.number(1).plus(value.times(Size.of(-1))))
        case Congruent(value, modulus, negated):
            return Congruent(value, modulus, not negated)
        case Same(query, key, negated):
            return Same(query, key, not negated)
        case Opaque(term, negated):
            return Opaque(term, not negated)


def clauses(formula: Formula, positions: Positions) -> list[Clause] | None:
    """Return clauses that all hold where the formula does and nowhere else; None if there are too many.

    Comparisons that hold everywhere, or nowhere, are decided.
    """
    match formula:
        case Every(parts):
            found: list[Clause] = []
            for part in parts:
                inner = clauses(part, positions)
                if inner is None or len(found) + len(inner) > MOST:
                    return None
                found += inner
            return _minimal(found)
        case Some(parts):
            return _any([clauses(part, positions) for part in parts])
        case AtMost(value):
            low, high = positions.bounds(value)
            if high is not None and (-high).at_least(0):
                return []
            return [()] if low is not None and low.at_least(1) else [(formula,)]
        case _:
            return [(formula,)]


def _any(choices: Sequence[list[Clause] | None]) -> list[Clause] | None:
    total = 1
    for choice in choices:
        if choice is None:
            return None
        total *= len(choice)
        if total > MOST:
            return None
    mixed = [_joined(c) for c in product(*(choice for choice in choices if choice is not None))]
    return _minimal([c for c in dict.fromkeys(mixed) if not _certain(c)])


def _minimal(found: Sequence[Clause]) -> list[Clause]:
    """Return the clauses less those that another one implies."""
    literals = {clause: frozenset(clause) for clause in found}
    return [c for c in literals if not any(other < literals[c] for other in literals.values())]


def _joined(parts: Sequence[Clause]) -> Clause:
    literals = {literal for part in parts for literal in part}
    return tuple(sorted((x for x in literals if not _within_another(x, literals)), key=repr))


def _within_another(literal: Literal, literals: Iterable[Literal]) -> bool:
    """Whether a limit says no more than a looser one."""
    if not isinstance(literal, AtMost):
        return False
    value = literal.value
    others = [x.value for x in literals if isinstance(x, AtMost) and x.value.terms == value.terms]
    return any(x.start != value.start and (value.start - x.start).at_least(0) for x in others)


def _certain(clause: Clause) -> bool:
    """Whether two literals of a clause leave nothing out: ``x <= 0`` or ``x >= c`` with ``c <= 1``."""
    limits = [c.value for c in clause if isinstance(c, AtMost)]
    for at, first in enumerate(limits):
        for second in limits[at + 1 :]:
            total = first.plus(second)
            if not total.terms and (1 - total.start).at_least(0):
                return True
    return False
