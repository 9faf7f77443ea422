"""A quotient read as weights: factors over the sum of the same factors along the keys."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from rewriter.algebra.index import Atom, resolve
from rewriter.algebra.prims import Prim, Reduce, Softmax
from rewriter.algebra.term import Apply, Number, Read, Term, leaves, read, same
from rewriter.sites.search import Search
from rewriter.sites.softmaxes import over_keys, unshifted, without_shift
from rewriter.sites.sums import as_sum, factors_of, parts_of, same_factors, spelled, under
from rewriter.sites.weights import NotWeights, Weights

__all__ = ["divided"]

HALF_A_UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""What is added to 1 and is not larger leaves it 1."""


def divided(
    search: Search, top: list[Term], bottom: Term, prim: Prim, keys: Sequence[Atom]
) -> tuple[Weights, list[Term]] | NotWeights | None:
    """Read factors over a denominator as weights over ``keys``, and what is left of the factors."""
    match bottom:
        case Apply("where", (Apply("eq", (tested, Number(0.0))), Number(), kept)) if same(tested, kept):
            return _guarded(divided(search, top, kept, prim, keys))
        case Apply("add", (kept, Apply("eq", (tested, Number(0.0))))) if same(tested, kept):
            return _guarded(divided(search, top, kept, prim, keys))
        case Read(Prim(form=Reduce("logsumexp", axes)) as lse, index):
            inner, bound = under(lse, axes, index)
            hit = _matching(top, [Apply("exp", (inner,), None)], bound, keys)
            return None if hit is None else _weights(search, hit, prim, keys, None, False, top)
    share, parts = factors_of(bottom)
    if share != 1.0 and len(parts) == 1:
        bottom = parts[0]
    total, sink, changed = _denominator(bottom)
    lost = share == 1.0 and _is_lost_beside_one(bottom)
    changed = changed or share != 1.0
    if total is None:
        return None
    bottom_sum = as_sum(total)
    if bottom_sum is None or bottom_sum.scale != 1.0:
        return None
    factors = [t for f in bottom_sum.factors for t in spelled(f)]
    hit = _matching(top, factors, bottom_sum.bound, keys)
    if hit is None:
        return _unmatched(top, factors, bottom_sum.bound, prim, keys)
    if lost and len(hit) == 1 and _holds_one(exponent(hit[0]), keys):
        sink, changed = None, False
    return _weights(search, hit, prim, keys, sink, changed, top)


def _is_lost_beside_one(bottom: Term) -> bool:
    """Whether what is done to a sum does nothing in the graph's own precision if the sum is at least 1."""
    match bottom:
        case Apply("maximum", (_, Number(least)) | (Number(least), _)):
            return least <= 1
        case Apply("add", (_, Number(eps)) | (Number(eps), _), dtype):
            return 0 <= eps <= HALF_A_UNIT.get(dtype or "", 0.0)
        case _:
            return False


def _holds_one(power: Term | None, keys: Sequence[Atom]) -> bool:
    """Whether a power is that of scores less their maximum over the keys: the largest exponential is 1."""
    match power:
        case Apply("sub", (scores, Read(Prim(form=Reduce("max", axes)) as top, index))):
            inner, bound = under(top, axes, index)
            return same_factors([inner], [scores], bound, keys)
        case _:
            return False


def _guarded(
    found: tuple[Weights, list[Term]] | NotWeights | None,
) -> tuple[Weights, list[Term]] | NotWeights | None:
    """Return what is found under a denominator that is another number where it would be 0."""
    return (replace(found[0], guarded=True), found[1]) if isinstance(found, tuple) else found


def _matching(
    top: Sequence[Term], factors: Sequence[Term], bound: Sequence[Atom], keys: Sequence[Atom]
) -> list[Term] | None:
    """Return the factors of the numerator that are those of the sum, or None."""
    if not factors:
        return None
    for chosen in itertools.combinations(top, len(factors)):
        if same_factors(factors, chosen, bound, keys):
            return list(chosen)
    return None


def _unmatched(
    top: Sequence[Term], factors: Sequence[Term], bound: Sequence[Atom], prim: Prim, keys: Sequence[Atom]
) -> NotWeights | None:
    if not any(exponent(t) is not None for t in top):
        return None
    own, wanted = parts_of(bound), parts_of(keys)
    if sorted(str(a.size) for a in own) != sorted(str(a.size) for a in wanted):
        reason = (
            "the exponentials are normalised over another axis than the one that is summed with the values"
        )
    else:
        reason = "the exponentials are divided by the sum of something else"
    return NotWeights(reason, prim)


def _denominator(bottom: Term) -> tuple[Term | None, Term | None, bool]:
    """Return the sum in a denominator, a logit added to it, and whether it is changed otherwise."""
    if as_sum(bottom) is not None:
        return bottom, None, False
    if not isinstance(bottom, Apply) or len(bottom.args) != 2:
        return None, None, False
    a, b = bottom.args
    total, other = (a, b) if as_sum(a) is not None else (b, a)
    if as_sum(total) is None:
        return None, None, False
    if bottom.fn == "add":
        logit = exponent(other)
        return total, logit, logit is None
    return (total, None, True) if bottom.fn == "maximum" else (None, None, False)


def _weights(
    search: Search,
    hit: list[Term],
    prim: Prim,
    keys: Sequence[Atom],
    sink: Term | None,
    changed: bool,
    top: Sequence[Term],
) -> tuple[Weights, list[Term]] | NotWeights | None:
    rest = [t for t in top if not any(t is h for h in hit)]
    wanted = frozenset(parts_of(keys))
    exponents = [e for t in hit if (e := exponent(t)) is not None]
    masks = [t for t in hit if exponent(t) is None]
    if len(exponents) == 1:
        scores, shift = unshifted(exponents[0], wanted)
        if sink is not None and shift:
            moved = without_shift(sink, shift)
            if moved is None and not isinstance(sink, Number):
                return NotWeights("something is added to the softmax denominator", prim)
            sink, changed = moved, changed or moved is None
        for mask in masks:
            if not _is_bool(mask):
                return NotWeights("the exponentials are multiplied by a tensor that is not a mask", prim)
            scores = Apply("where", (mask, scores, Number(-math.inf)), None)
        return Weights(scores, prim, sink=sink, changed=changed), rest
    if exponents or sink is not None:
        return None
    return _renormalised(search, hit, prim, keys, changed, rest)


def _renormalised(
    search: Search, hit: list[Term], prim: Prim, keys: Sequence[Atom], changed: bool, rest: list[Term]
) -> tuple[Weights, list[Term]] | NotWeights | None:
    """Something else than exponentials, divided by its own sum over the keys."""
    softmaxes = [
        t for f in hit for t in leaves(f) if isinstance(t, Read) and isinstance(t.prim.form, Softmax)
    ]
    if not softmaxes:
        whole: Term = hit[0]
        for other in hit[1:]:
            whole = Apply("mul", (whole, other), None)
        return Weights(whole, prim, by="sum", changed=changed), rest
    varying = [t for t in softmaxes if search.varies(t)]
    if len(varying) > 1:
        return NotWeights("the weights mix several normalisers", prim, "values")
    first = (varying or softmaxes)[0]
    form = first.prim.form
    assert isinstance(form, Softmax)
    over = over_keys(search, first.prim, form.axis, first.index, keys)
    if isinstance(over, NotWeights):
        before = read(first.prim.inputs[0], first.index)
        over_ = resolve(first.index)[form.axis].atoms
        return Weights(before, first.prim, by="softmax over queries", changed=True, over=over_), rest
    masks = [t for t in hit if not same(t, first)]
    if len(softmaxes) == 1 and len(masks) == len(hit) - 1 and all(map(_is_bool, masks)) and not changed:
        scores: Term = over.scores
        for mask in masks:
            scores = Apply("where", (mask, scores, Number(-math.inf)), None)
        return replace(over, scores=scores), rest
    beside = tuple(t.prim for t in softmaxes if t is not first)
    return replace(over, changed=True, beside=beside), rest


def _is_bool(term: Term) -> bool:
    match term:
        case Read(prim, _):
            return prim.dtype == "bool"
        case Apply("cast", (inner,)):
            return _is_bool(inner)
        case Apply(_, _, dtype):
            return dtype == "bool"
        case _:
            return False


def exponent(term: Term) -> Term | None:
    """Return ``s`` of ``exp(s)``, in whatever base it is spelled."""
    match term:
        case Apply("exp", (scores,)):
            return scores
        case Apply("exp2", (scores,)):
            return Apply("mul", (scores, Number(math.log(2.0))), term.dtype)
        case Apply("pow", (Number(base), scores)) if base > 0:
            return Apply("mul", (scores, Number(math.log(base))), term.dtype)
        case Number(value) if value > 0:
            return Number(math.log(value))
        case _:
            return None
