"""What divides, however it is spelled: a division, an inverse as a factor, a logarithm that is subtracted."""

from __future__ import annotations

from rewriter.algebra.prims import Prim, Reduce
from rewriter.algebra.term import Apply, Number, Read, Term
from rewriter.sites.sums import factors_of

__all__ = ["inverse", "quotient"]


def quotient(term: Term) -> tuple[list[Term], Term] | None:
    """Return ``(factors of the numerator, denominator)`` of a term that divides, however it is spelled."""
    match term:
        case Apply("div", (top, bottom)) if not isinstance(bottom, Number):
            scale, factors = factors_of(top)
            return ([*factors] if scale == 1.0 else [Number(scale), *factors]), bottom
        case Apply("exp" | "exp2", (Apply("sub", (scores, shift)),)):
            return _by_logarithm(term, scores, shift)
        case Apply("mul"):
            _, factors = factors_of(term)
            inverses = [(k, d) for k, f in enumerate(factors) if (d := inverse(f)) is not None]
            if len(inverses) != 1:
                return None
            at, bottom = inverses[0]
            return [f for k, f in enumerate(factors) if k != at], bottom
        case _:
            return None


def inverse(term: Term) -> Term | None:
    """Return ``d`` of ``1 / d``, however it is spelled."""
    match term:
        case Apply("reciprocal", (bottom,)) | Apply("pow", (bottom, Number(-1.0))):
            return bottom
        case Apply("div", (Number(1.0), bottom)):
            return bottom
        case _:
            return None


def _by_logarithm(term: Apply, scores: Term, shift: Term) -> tuple[list[Term], Term] | None:
    """Read ``exp(s - log sum)`` as ``exp(s) / sum``, with or without a maximum taken out of the sum."""
    summands = _summands(shift)
    for k, summand in enumerate(summands):
        bottom: Term | None = None
        match summand:
            case Apply("log", (inside,)):
                bottom = inside
            case Read(Prim(form=Reduce("logsumexp"))):
                bottom = summand
        if bottom is None:
            continue
        rest = scores
        for other in summands[:k] + summands[k + 1 :]:
            rest = Apply("sub", (rest, other), term.dtype)
        return [Apply(term.fn, (rest,), term.dtype)], bottom
    return None


def _summands(term: Term) -> list[Term]:
    match term:
        case Apply("add", (a, b)):
            return _summands(a) + _summands(b)
        case _:
            return [term]
