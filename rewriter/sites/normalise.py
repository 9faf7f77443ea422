"""From the weights of a contraction back to the scores: which normaliser made them, over which axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rewriter.algebra.index import Atom
from rewriter.algebra.prims import Prim, Softmax
from rewriter.algebra.term import Apply, Number, Read, Term, depends_on, leaves, same, unfold
from rewriter.sites.denominators import divided
from rewriter.sites.guards import is_guard
from rewriter.sites.quotients import quotient
from rewriter.sites.search import Search
from rewriter.sites.softmaxes import over_keys
from rewriter.sites.sums import as_sum, is_matrix, parts_of
from rewriter.sites.weights import NotWeights, Weights

__all__ = ["weights_of"]


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
    if is_guard(tree, term):
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
            held = unfold(matrix, budget=8) if isinstance(matrix, Read) else matrix
            atoms, bound = depends_on(held), {*parts_of(mixture.bound)}
            if not isinstance(inner, Read) or atoms & wanted or not is_matrix(held) or not atoms & bound:
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


def _as_weights(search: Search, term: Term, keys: Sequence[Atom]) -> Weights | NotWeights | None:
    match term:
        case Read(Prim(form=Softmax(axis, False)) as prim, index):
            return over_keys(search, prim, axis, index, keys)
        case Apply("exp", (Read(Prim(form=Softmax(axis, True)) as prim, index),)):
            return over_keys(search, prim, axis, index, keys)
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
