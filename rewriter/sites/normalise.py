"""From the weights of a contraction back to the scores: which normaliser made them, over which axis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rewriter.algebra.index import Affine, Atom, resolve
from rewriter.algebra.prims import Constant, Prim, Reduce, Softmax
from rewriter.algebra.sizes import ONE, ZERO, product
from rewriter.algebra.term import (
    Apply,
    Number,
    Read,
    Term,
    depends_on,
    leaves,
    read,
    same,
    unfold,
)
from rewriter.sites.refusal import Stage
from rewriter.sites.search import Search
from rewriter.sites.sums import as_sum, factors_of, parts_of, same_factors

__all__ = [
    "MASKING",
    "NotWeights",
    "Weights",
    "asks_for_empty_rows",
    "divided",
    "over_queries",
    "quotient",
    "repeats_mask",
    "unshifted",
    "weights_of",
]

MASKING = -1e30
"""A number at or below this hides a key: added to or put in place of any score it leaves itself."""


_LARGEST = 1 << 24
"""Constants with more entries are not compared."""


@dataclass(frozen=True)
class Weights:
    """Normalised weights over the contracted axis.

    Parameters
    ----------
    scores
        What is normalised, at the index of the weights.
    normaliser
        The tensor that the refusal or the report names.
    by
        ``softmax``, ``sum`` (a quotient by the sum over the keys) or ``softmax over queries``.
    sink
        A logit that takes part in the softmax and has no value.
    guarded
        A row without visible keys gives zeros: NaN weights are replaced by 0.
    guard
        The condition under which weights become 0, where it is not that they are NaN.
    changed
        The weights are changed by another function before they meet the values.
    matrix
        What mixes the weights of all heads.
    beside
        Other normalisers, of positions, that are mixed in.
    over
        What a softmax that is not over the keys runs over.
    """

    scores: Term
    normaliser: Prim
    by: str = "softmax"
    sink: Term | None = None
    guarded: bool = False
    guard: Term | None = None
    changed: bool = False
    matrix: Term | None = None
    beside: tuple[Prim, ...] = ()
    over: frozenset[Atom] = frozenset()


@dataclass(frozen=True)
class NotWeights:
    """A normaliser that does not fit, and why."""

    reason: str
    normaliser: Prim
    reached: Stage = "normaliser"
    """How far it got; ``scores``: some entries of a softmax, of which the others may meet other values."""


def weights_of(search: Search, weights: Read, keys: Sequence[Atom]) -> Weights | NotWeights | None:
    """Return the normaliser behind an operand of a contraction over ``keys``; None when there is none."""
    tree = unfold(weights, budget=32)
    found: list[tuple[Term, Weights]] = []
    refusals: list[NotWeights] = []
    _collect(search, tree, keys, found, refusals)
    if not found:
        return refusals[0] if refusals else _mixed(search, tree, keys)
    if len(found) > 1:
        return _several(search, tree, keys, found)
    (term, weights_), *_ = found
    if refusals:
        return NotWeights("the weights mix several normalisers", weights_.normaliser, "values")
    if same(tree, term):
        return weights_
    if _is_guard(tree, term):
        return replace(weights_, guarded=True)
    match tree:
        case Apply("where", (condition, Number(0.0), kept)) if same(kept, term):
            return replace(weights_, guard=condition)
        case Apply("where", (condition, kept, Number(0.0))) if same(kept, term):
            return replace(weights_, guard=Apply("not", (condition,), "bool"))
        case Apply(fn):
            return _changed(search, tree, [term], keys, weights_, fn)
        case _:
            return None


def _several(
    search: Search, tree: Term, keys: Sequence[Atom], found: Sequence[tuple[Term, Weights]]
) -> Weights | NotWeights:
    """Judge a mixture: positions may be mixed in, a second softmax of data may not."""
    varying = [w for _, w in found if search.varies(w.scores)]
    main = varying[0] if varying else found[0][1]
    if len(varying) > 1:
        return NotWeights("the weights mix several normalisers", main.normaliser, "values")
    fn = tree.fn if isinstance(tree, Apply) else ""
    main = replace(main, beside=tuple(w.normaliser for _, w in found if w is not main))
    return _changed(search, tree, [t for t, _ in found], keys, main, fn)


def _changed(
    search: Search, tree: Term, inside: Sequence[Term], keys: Sequence[Atom], weights: Weights, fn: str
) -> Weights | NotWeights:
    """Allow functions of the weights alone; what varies with data and key is a gate or a late mask."""
    wanted = frozenset(parts_of(keys))
    for other in _others(tree, inside):
        if isinstance(other, Read) and other.atoms & wanted and search.varies(other):
            reason = f"the weights are changed after the {weights.by} (by {fn}) before they meet the values"
            return NotWeights(reason, weights.normaliser, "values")
    return replace(weights, changed=True)


def _others(tree: Term, inside: Sequence[Term]) -> list[Term]:
    if any(same(tree, term) for term in inside):
        return []
    if isinstance(tree, Apply):
        return [t for arg in tree.args for t in _others(arg, inside)]
    return [tree]


def _mixed(search: Search, tree: Term, keys: Sequence[Atom]) -> Weights | NotWeights | None:
    """Look through a contraction of the weights of all heads with a matrix."""
    wanted = frozenset(parts_of(keys))
    mixtures = [s for t in leaves(tree) if (s := as_sum(t)) is not None and len(s.factors) == 2]
    for mixture in mixtures:
        for inner, matrix in (mixture.factors, mixture.factors[::-1]):
            held = depends_on(unfold(matrix, budget=8) if isinstance(matrix, Read) else matrix)
            if not isinstance(inner, Read) or held & wanted or len(held) > 2 or not held & {*mixture.bound}:
                continue
            weights = weights_of(search, inner, keys)
            if isinstance(weights, Weights) and same(tree, mixture.whole):
                return replace(weights, matrix=matrix)
            if isinstance(weights, Weights) and weights.matrix is None:
                weights = replace(weights, matrix=matrix)
                return _changed(search, tree, [mixture.whole], keys, weights, "a function")
            if weights is not None:
                return weights
    return None


def _collect(
    search: Search,
    term: Term,
    keys: Sequence[Atom],
    found: list[tuple[Term, Weights]],
    refusals: list[NotWeights],
) -> None:
    """Collect the distinct normalisers in a term, with their scores, and those that do not fit."""
    known = _as_weights(search, term, keys)
    if isinstance(known, NotWeights):
        refusals.append(known)
    elif known is not None:
        if not any(same(term, other) for other, _ in found):
            found.append((term, known))
    elif isinstance(term, Apply):
        for arg in term.args:
            _collect(search, arg, keys, found, refusals)


def _is_guard(tree: Term, weights: Term) -> bool:
    match tree:
        case Apply("where", (Apply("isnan", (tested,)), Number(0.0), kept)):
            return same(tested, weights) and same(kept, weights)
        case Apply("where", (Apply("not", (Apply("isnan", (tested,)),)), kept, Number(0.0))):
            return same(tested, weights) and same(kept, weights)
        case _:
            return False


def asks_for_empty_rows(condition: Term, bias: Term, keys: Sequence[Atom]) -> bool:
    """Whether a condition says that the bias is -inf at every key: ``max over keys of bias == -inf``."""
    match condition:
        case Apply("eq", (Read(Prim(form=Reduce("max", axes)) as top, index), Number(value))) if (
            value == -np.inf
        ):
            return _reduces(top, axes, index, bias, keys)
        case Apply("isinf", (Read(Prim(form=Reduce("max", axes)) as top, index),)):
            return _reduces(top, axes, index, bias, keys)
        case Apply("not", (Read(Prim(form=Reduce("max", axes)) as top, index),)):
            visible = _visible(bias)
            return visible is not None and _reduces(top, axes, index, visible, keys)
        case _:
            return False


def repeats_mask(condition: Term, bias: Term) -> bool:
    """Whether weights become 0 exactly where the bias hides the key: it tells in empty rows only."""
    match bias:
        case Apply("where", (hidden, Number(fill), _)) if fill <= MASKING:
            return _same_condition(condition, hidden)
        case Apply("where", (visible, _, Number(fill))) if fill <= MASKING:
            return _same_condition(condition, Apply("not", (visible,), "bool"))
        case _:
            return False


def _same_condition(a: Term, b: Term) -> bool:
    """Whether two conditions are the same, negations taken together."""
    (x, left), (y, right) = _positive(a), _positive(b)
    return left == right and (same(x, y) or _same_constant(x, y))


def _same_constant(a: Term, b: Term) -> bool:
    match a, b:
        case (Read(Prim(form=Constant(p)) as x, i), Read(Prim(form=Constant(q)), j)):
            small = (product(x.shape).known() or _LARGEST + 1) <= _LARGEST
            return small and resolve(i) == resolve(j) and np.array_equal(p(), q())
        case _:
            return False


def _positive(term: Term) -> tuple[Term, bool]:
    match term:
        case Apply("not", (inner,)) | Apply("eq", (inner, Number(0.0))):
            x, kept = _positive(inner)
            return x, not kept
        case _:
            return term, True


def _visible(bias: Term) -> Term | None:
    """Return the condition that makes a bias hide keys by -inf, if that is all it does."""
    match bias:
        case Apply("where", (condition, Number(0.0), Number(fill))) if fill == -np.inf:
            return condition
        case _:
            return None


def _reduces(
    top: Prim, axes: Sequence[int], index: tuple[Affine, ...], body: Term, keys: Sequence[Atom]
) -> bool:
    """Whether a reduction over ``axes`` runs over exactly ``body`` along the keys."""
    inner, bound = _under(top, axes, index)
    return same_factors([inner], [body], bound, keys)


def _under(top: Prim, axes: Sequence[int], index: tuple[Affine, ...]) -> tuple[Term, list[Atom]]:
    """Return what a reduction runs over, as a term, and the atoms of the axes that it drops."""
    operand = top.inputs[0]
    bound = [Atom(operand.shape[axis]) for axis in axes]
    full = list(index)
    for axis, atom in zip(axes, bound, strict=True):
        full.insert(axis, Affine(ZERO) if atom.size == ONE else Affine.of(atom))
    return unfold(Read(operand, tuple(full)), budget=64), [a for a in bound if a.size != ONE]


def _as_weights(search: Search, term: Term, keys: Sequence[Atom]) -> Weights | NotWeights | None:
    match term:
        case Read(Prim(form=Softmax(axis, False)) as prim, index):
            return _over(prim, axis, index, keys)
        case Apply("exp", (Read(Prim(form=Softmax(axis, True)) as prim, index),)):
            return _over(prim, axis, index, keys)
        case Apply(_, _, _, Read(prim, _)):
            parts = quotient(term)
            if parts is None:
                return None
            found = divided(search, *parts, prim, keys)
            return found[0] if isinstance(found, tuple) and not found[1] else _only_refusal(found)
        case _:
            return None


def _only_refusal(found: tuple[Weights, list[Term]] | NotWeights | None) -> NotWeights | None:
    return found if isinstance(found, NotWeights) else None


def _over(prim: Prim, axis: int, index: tuple[Affine, ...], keys: Sequence[Atom]) -> Weights | NotWeights:
    at = resolve(index)[axis]
    length = prim.shape[axis]
    here, wanted = at.atoms, frozenset(parts_of(keys))
    taken = product(a.size for a in here)
    if here == wanted and at.dense() is not None:
        scores, shift = unshifted(unfold(Read(prim.inputs[0], index), budget=64), wanted)
        if at.start == ZERO and taken == length:
            return Weights(scores, prim)
        sink = _sink(prim, axis, index, at) if length - taken == ONE else None
        sink = sink if sink is None or not shift else _without(sink, shift)
        if sink is not None:
            return Weights(scores, prim, sink=sink)
    if not here & wanted:
        reason = "the softmax runs over another axis than the one that is summed with the values"
    elif here < wanted:
        reason = "the sum with the values runs over more axes than the softmax"
    elif here == wanted:
        reason = f"the softmax runs over {length} entries, of which {taken} are summed with these values"
    else:
        reason = "the softmax runs over more axes than the one that is summed with the values"
    return NotWeights(reason, prim, "scores" if here == wanted else "normaliser")


def _sink(prim: Prim, axis: int, index: tuple[Affine, ...], at: Affine) -> Term | None:
    """Return the one logit beside those of the keys; None if it is computed from keys itself."""
    end = at.highest() + 1
    place = ZERO if at.start == ONE else end
    beside = (*index[:axis], Affine(place), *index[axis + 1 :])
    logit = unfold(Read(prim.inputs[0], beside), budget=16)
    return None if any(isinstance(t, Read) and as_sum(t) is not None for t in leaves(logit)) else logit


# quotients


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
            inverses = [(k, d) for k, f in enumerate(factors) if (d := _inverse(f)) is not None]
            if len(inverses) != 1:
                return None
            at, bottom = inverses[0]
            return [f for k, f in enumerate(factors) if k != at], bottom
        case _:
            return None


def _inverse(term: Term) -> Term | None:
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


def divided(
    search: Search, top: list[Term], bottom: Term, prim: Prim, keys: Sequence[Atom]
) -> tuple[Weights, list[Term]] | NotWeights | None:
    """Read factors over a denominator as weights over ``keys``, and what is left of the factors."""
    match bottom:
        case Apply("where", (Apply("eq", (tested, Number(0.0))), Number(), kept)) if same(tested, kept):
            found = divided(search, top, kept, prim, keys)
            return (replace(found[0], guarded=True), found[1]) if isinstance(found, tuple) else found
        case Read(Prim(form=Reduce("logsumexp", axes)) as lse, index):
            inner, bound = _under(lse, axes, index)
            hit = _matching(top, [Apply("exp", (inner,), None)], bound, keys)
            return None if hit is None else _weights(search, hit, prim, keys, None, False, top)
    share, parts = factors_of(bottom)
    if share != 1.0 and len(parts) == 1:
        bottom = parts[0]
    total, sink, changed = _denominator(bottom)
    changed = changed or share != 1.0
    if total is None:
        return None
    bottom_sum = as_sum(total)
    if bottom_sum is None or bottom_sum.scale != 1.0:
        return None
    factors = [t for f in bottom_sum.factors for t in _spelled(f)]
    hit = _matching(top, factors, bottom_sum.bound, keys)
    if hit is None:
        return _unmatched(top, factors, bottom_sum.bound, prim, keys)
    return _weights(search, hit, prim, keys, sink, changed, top)


def _spelled(factor: Term) -> list[Term]:
    if isinstance(factor, Read):
        factor = unfold(factor, budget=64)
    return factors_of(factor)[1]


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
    if not any(_exponent(t) is not None for t in top):
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
        logit = _exponent(other)
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
    exponents = [e for t in hit if (e := _exponent(t)) is not None]
    masks = [t for t in hit if _exponent(t) is None]
    if len(exponents) == 1:
        scores, shift = unshifted(exponents[0], wanted)
        if sink is not None and shift:
            moved = _without(sink, shift)
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
    over = _over(first.prim, form.axis, first.index, keys)
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


def _exponent(term: Term) -> Term | None:
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


def unshifted(term: Term, keys: frozenset[Atom]) -> tuple[Term, list[Term]]:
    """Drop what is subtracted from the scores and does not depend on the key: it cancels."""
    shift: list[Term] = []
    while True:
        match term:
            case Apply("sub", (scores, by)) if not depends_on(by) & keys:
                shift.append(by)
                term = scores
            case Apply("mul", (Apply("sub", (scores, by)), Number(c))) if not depends_on(by) & keys:
                shift.append(Apply("mul", (by, Number(c)), None))
                term = Apply("mul", (scores, Number(c)), None)
            case _:
                return term, shift


def _without(logit: Term, shift: Sequence[Term]) -> Term | None:
    """Return a logit of the denominator before the shift that the scores had, too, was taken off."""
    for by in shift:
        match logit:
            case Apply("sub", (inner, other)) if same(other, by):
                logit = inner
            case Apply("neg", (other,)) if same(other, by):
                logit = Number(0.0)
            case _:
                return None
    return logit


def over_queries(weights: Read, keys: Sequence[Atom]) -> Weights | None:
    """Return weights that are a softmax over another axis than the keys, and nothing else, or None."""
    tree = unfold(weights, budget=8)
    if isinstance(tree, Read) and isinstance(tree.prim.form, Softmax):
        over = resolve(tree.index)[tree.prim.form.axis].atoms
        if not over & frozenset(parts_of(keys)):
            scores = read(tree.prim.inputs[0], tree.index)
            return Weights(scores, tree.prim, by="softmax over queries", over=over)
    return None
