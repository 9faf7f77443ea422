"""A softmax read as weights: over the keys, with one logit more than keys, or over the queries."""

from __future__ import annotations

from collections.abc import Sequence

from rewriter.algebra.index import Affine, Atom, resolve
from rewriter.algebra.prims import Prim, Softmax
from rewriter.algebra.sizes import ONE, ZERO, product
from rewriter.algebra.term import Apply, Number, Read, Term, depends_on, leaves, read, same, unfold
from rewriter.sites.search import Search
from rewriter.sites.sums import as_sum, parts_of
from rewriter.sites.weights import NotWeights, Weights

__all__ = ["over_keys", "over_queries", "unshifted", "without_shift"]


def over_keys(
    search: Search, prim: Prim, axis: int, index: tuple[Affine, ...], keys: Sequence[Atom]
) -> Weights | NotWeights:
    """Return the weights of a softmax that runs over the keys, or over all of them and one logit more."""
    at = resolve(index)[axis]
    length = prim.shape[axis]
    here, wanted = at.atoms, frozenset(parts_of(keys))
    taken = product(a.size for a in here)
    if here == wanted and at.dense() is not None:
        scores, shift = unshifted(unfold(Read(prim.inputs[0], index), budget=64), wanted)
        if at.start == ZERO and taken == length:
            return Weights(scores, prim)
        sink = _sink(search, prim, axis, index, at, scores) if length - taken == ONE else None
        sink = sink if sink is None or not shift else without_shift(sink, shift)
        if sink is not None:
            return Weights(scores, prim, sink=sink)
    if here == wanted:  # a single entry has no atom
        reason = f"the softmax runs over {length} entries, of which {taken} are summed with these values"
    elif not here & wanted:
        reason = "the softmax runs over another axis than the one that is summed with the values"
    elif here < wanted:
        reason = "the sum with the values runs over more axes than the softmax"
    else:
        reason = "the softmax runs over more axes than the one that is summed with the values"
    return NotWeights(reason, prim, "scores" if here == wanted else "normaliser")


def _sink(
    search: Search, prim: Prim, axis: int, index: tuple[Affine, ...], at: Affine, scores: Term
) -> Term | None:
    """Return the one logit beside those of the keys; None if it is that of another key."""
    end = at.highest() + 1
    place = ZERO if at.start == ONE else end
    beside = (*index[:axis], Affine(place), *index[axis + 1 :])
    logit = unfold(Read(prim.inputs[0], beside), budget=16)
    sums = {t.prim for t in leaves(logit) if isinstance(t, Read) and as_sum(t) is not None}
    of_keys = not sums.isdisjoint(t.prim for t in leaves(scores) if isinstance(t, Read))
    return logit if not sums or (search.unread(prim, axis, place) and not of_keys) else None


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


def without_shift(logit: Term, shift: Sequence[Term]) -> Term | None:
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
