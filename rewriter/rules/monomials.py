"""Weights of attention as a sum of products: shares of the softmax, and what is added to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rewriter.algebra.index import Atom
from rewriter.algebra.prims import Prim, Softmax
from rewriter.algebra.term import Apply, Number, Read, Term, depends_on, leaves, unfold
from rewriter.sites.origin import Origin
from rewriter.sites.sums import as_sum, factors_of, parts_of, same_factors

__all__ = ["Factor", "Monomial", "Monomials", "monomials"]

Factor = tuple[Term, bool]
"""What multiplies, or divides if flagged."""

MOST = 16
"""How many products a sum may be multiplied out to."""

NEAR = 64
"""How many steps behind a factor it is looked whether the softmax is what it is computed from."""


@dataclass(frozen=True)
class Monomial:
    """``number · rows · matrices``, and times the softmax if ``softmax``.

    Parameters
    ----------
    number
        A known factor.
    rows
        Factors that do not depend on keys.
    matrices
        Factors that do.
    softmax
        Whether the softmax is a factor, too.
    """

    number: float = 1.0
    rows: tuple[Factor, ...] = ()
    matrices: tuple[Factor, ...] = ()
    softmax: bool = False


@dataclass(frozen=True)
class Monomials:
    """A sum.

    Parameters
    ----------
    parts
        What is added.
    renormalised
        Whether the whole is divided by its sum over the keys.
    """

    parts: tuple[Monomial, ...]
    renormalised: bool


def monomials(weights: Term, keys: Sequence[Atom], origin: Origin) -> Monomials | None:
    """Return the sum that weights are, or None if they are another function, or a sum of too many parts.

    A factor that is computed from the softmax makes another function of it, but for the sum of the weights.

    Parameters
    ----------
    weights
        Read over the atoms of a site.
    keys
        Its keys.
    origin
        Of the program: the softmax is the one that inputs change.
    """
    tree = unfold(weights, budget=32) if isinstance(weights, Read) else weights
    divided = tree.args if isinstance(tree, Apply) and tree.fn == "div" else None
    renormalised = divided is not None and _is_sum_over(divided[1], divided[0], keys)
    if renormalised and divided is not None:
        tree = divided[0]
    found = _Expansion(frozenset(parts_of(keys)), origin).of(tree)
    if found is None or any(_made_of(tree, t, origin) for m in found for t, _ in (*m.rows, *m.matrices)):
        return None
    return Monomials(tuple(found), renormalised)


def _made_of(tree: Term, factor: Term, origin: Origin) -> bool:
    """Whether the softmax of a sum is near behind one of its factors."""
    softmax = {at.prim for at in leaves(tree) if _is_softmax(at, origin) and isinstance(at, Read)}
    stack = [at.prim for at in leaves(factor) if isinstance(at, Read)]
    seen: set[Prim] = set()
    while stack and len(seen) < NEAR:
        prim = stack.pop()
        if prim in softmax:
            return True
        if prim not in seen:
            seen.add(prim)
            stack += prim.inputs
    return False


def _is_softmax(term: Term, origin: Origin) -> bool:
    match term:
        case Read(Prim(form=Softmax(log=False)) as prim, _):
            return origin.varies(prim)
        case _:
            return False


def _is_sum_over(term: Term, summand: Term, keys: Sequence[Atom]) -> bool:
    total = as_sum(term)
    scale, factors = factors_of(summand)
    return (
        total is not None and total.scale == scale and same_factors(total.factors, factors, total.bound, keys)
    )


@dataclass(frozen=True)
class _Expansion:
    keys: frozenset[Atom]
    origin: Origin

    def of(self, term: Term) -> list[Monomial] | None:
        if _is_softmax(term, self.origin):
            return [Monomial(softmax=True)]
        if isinstance(term, Number):
            return [Monomial(term.value)]
        if self._is_row(term):
            return [Monomial(rows=((term, False),))]
        found = self._sum(term) if isinstance(term, Apply) else None
        if found is not None and len(found) <= MOST:
            return found
        return None if self._holds_softmax(term) else [Monomial(matrices=((term, False),))]

    def _sum(self, term: Apply) -> list[Monomial] | None:
        args = [self.of(arg) for arg in term.args]
        known = [arg for arg in args if arg is not None]
        if len(known) != len(args):
            return None
        match term.fn, known:
            case "add", (a, b):
                return [*a, *b]
            case "sub", (a, b):
                return [*a, *map(_negative, b)]
            case "neg", (a,):
                return [*map(_negative, a)]
            case "mul", (a, b):
                return _multiplied(a, b)
            case "div", (a, _):
                return _multiplied(a, [_inverse(term.args[1])]) if self._divides(term.args[1]) else None
            case _:
                return None

    def _divides(self, term: Term) -> bool:
        return self._is_row(term) or (isinstance(term, Number) and term.value != 0)

    def _is_row(self, term: Term) -> bool:
        whole = isinstance(term, Number) or self._holds_softmax(term)
        return not whole and not depends_on(term) & self.keys

    def _holds_softmax(self, term: Term) -> bool:
        return any(_is_softmax(at, self.origin) for at in leaves(term))


def _negative(m: Monomial) -> Monomial:
    return replace(m, number=-m.number)


def _inverse(term: Term) -> Monomial:
    return Monomial(1 / term.value) if isinstance(term, Number) else Monomial(rows=((term, True),))


def _multiplied(a: Sequence[Monomial], b: Sequence[Monomial]) -> list[Monomial] | None:
    """Return the product of two sums, multiplied out; None if the softmax would be squared."""
    if any(x.softmax for x in a) and any(y.softmax for y in b):
        return None
    return [
        Monomial(x.number * y.number, x.rows + y.rows, x.matrices + y.matrices, x.softmax or y.softmax)
        for x in a
        for y in b
    ]
