"""From the weights of a contraction back to the scores: which normaliser made them, over which axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewriter.algebra.index import Affine, Atom, einsum_index, resolve
from rewriter.algebra.prims import Einsum, Prim, Reduce, Softmax
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
    substitute,
    unfold,
)

__all__ = ["NotWeights", "Weights", "asks_for_empty_rows", "normalised_sum", "parts_of", "weights_of"]


@dataclass(frozen=True)
class Weights:
    """Weights that are a softmax over the contracted axis.

    Parameters
    ----------
    scores
        Where the scores are read, at the index of the weights.
    guarded
        A row without visible keys gives zeros: NaN weights are replaced by 0.
    guard
        The condition under which weights become 0, where it is not that they are NaN.
    normaliser
        The tensor that the refusal or the report names.
    """

    scores: Term
    guarded: bool
    normaliser: Prim
    guard: Term | None = None


@dataclass(frozen=True)
class NotWeights:
    """A normaliser that does not fit, and why."""

    reason: str
    normaliser: Prim


def parts_of(atoms: Sequence[Atom]) -> tuple[Atom, ...]:
    """Return atoms as they are now split."""
    return tuple(p for a in atoms for p in a.parts())


def weights_of(weights: Read, keys: Sequence[Atom]) -> Weights | NotWeights | None:
    """Return the normaliser behind an operand of a contraction over ``keys``; None when there is none."""
    tree = unfold(weights, budget=24)
    found: list[tuple[Term, Term, Prim]] = []
    refusals: list[NotWeights] = []
    _search(tree, keys, found, refusals)
    if not found:
        return refusals[0] if refusals else None
    term, scores, prim = found[0]
    if len(found) > 1 or refusals:
        return NotWeights("the weights mix several normalisers", prim)
    if same(tree, term):
        return Weights(scores, False, prim)
    if _is_guard(tree, term):
        return Weights(scores, True, prim)
    match tree:
        case Apply("where", (condition, Number(0.0), kept)) if same(kept, term):
            return Weights(scores, True, prim, condition)
        case Apply(fn):
            return NotWeights(
                f"the weights are changed after the softmax (by {fn}) before they meet the values", prim
            )
        case _:
            return None


def _search(
    term: Term, keys: Sequence[Atom], found: list[tuple[Term, Term, Prim]], refusals: list[NotWeights]
) -> None:
    """Collect the distinct normalisers in a term, with their scores, and those that do not fit."""
    known = _as_softmax(term, keys)
    if isinstance(known, NotWeights):
        refusals.append(known)
    elif known is not None:
        if not any(same(term, other) for other, _, _ in found):
            found.append((term, *known))
    elif isinstance(term, Apply):
        for arg in term.args:
            _search(arg, keys, found, refusals)


def _is_guard(tree: Term, weights: Term) -> bool:
    match tree:
        case Apply("where", (Apply("isnan", (tested,)), Number(0.0), kept)):
            return same(tested, weights) and same(kept, weights)
        case _:
            return False


def asks_for_empty_rows(condition: Term, bias: Term, keys: Sequence[Atom]) -> bool:
    """Whether a condition says that the largest entry of ``bias`` over the keys is -inf."""
    match condition:
        case Apply("eq", (Read(Prim(form=Reduce("max", (axis,))) as prim, index), Number(value))):
            pass
        case _:
            return False
    total, stride = Affine(ZERO), ONE
    for atom in reversed(parts_of(keys)):
        total, stride = total.plus(Affine.of(atom).times(stride)), stride * atom.size
    operand = prim.inputs[0]
    if value != -np.inf or operand.shape[axis] != stride:
        return False
    return same(unfold(Read(operand, (*index[:axis], total, *index[axis:])), budget=64), bias)


def _as_softmax(term: Term, keys: Sequence[Atom]) -> tuple[Term, Prim] | NotWeights | None:
    """Return ``(scores, normaliser)`` if the term is a softmax over ``keys``."""
    match term:
        case Read(Prim(form=Softmax(axis, False)) as prim, index):
            return _over(prim, axis, index, keys)
        case Apply("exp", (Read(Prim(form=Softmax(axis, True)) as prim, index),)):
            return _over(prim, axis, index, keys)
        case Apply("div", (numerator, denominator), _, Read(prim, _)):
            return _as_quotient(numerator, denominator, prim, keys)
        case Apply("mul", (numerator, Apply("reciprocal", (denominator,))), _, Read(prim, _)):
            return _as_quotient(numerator, denominator, prim, keys)
        case Apply("mul", (Apply("reciprocal", (denominator,)), numerator), _, Read(prim, _)):
            return _as_quotient(numerator, denominator, prim, keys)
        case _:
            return None


def _over(
    prim: Prim, axis: int, index: tuple[Affine, ...], keys: Sequence[Atom]
) -> tuple[Term, Prim] | NotWeights:
    at = resolve(index)[axis]
    length = prim.shape[axis]
    here, wanted = at.atoms, frozenset(parts_of(keys))
    if here == wanted and at.start == ZERO and product(a.size for a in here) == length:
        return read(prim.inputs[0], index), prim
    if not here & wanted:
        reason = "the softmax runs over another axis than the one that is summed with the values"
    elif here < wanted:
        reason = "the sum with the values runs over more axes than the softmax"
    elif here == wanted:
        reason = (
            f"the softmax runs over {length} entries, of which only some are summed with the values (a sink)"
        )
    else:
        reason = "the softmax runs over more axes than the one that is summed with the values"
    return NotWeights(reason, prim)


def _as_quotient(
    numerator: Term, denominator: Term, prim: Prim, keys: Sequence[Atom]
) -> tuple[Term, Prim] | NotWeights | None:
    verdict = normalised_sum(numerator, denominator, keys)
    if isinstance(verdict, str):
        return NotWeights(verdict, prim)
    return None if verdict is None else (verdict, prim)


def normalised_sum(numerator: Term, denominator: Term, keys: Sequence[Atom]) -> Term | str | None:
    """Return the scores ``s`` if the quotient is ``exp(s) / sum over keys of exp(s)``."""
    if not isinstance(numerator, Apply) or numerator.fn != "exp":
        return None
    exact = denominator
    if isinstance(denominator, Apply):
        sums = [t for t in denominator.args if isinstance(t, Read) and _is_sum(t)]
        if denominator.fn in ("add", "maximum") and len(sums) == 1:
            exact = sums[0]
    if not isinstance(exact, Read) or not _is_sum(exact):
        return None
    form = exact.prim.form
    assert isinstance(form, Einsum)
    (index,), bound = einsum_index(form, exact.prim.shape, exact.index, exact.prim.inputs)
    inner = unfold(Read(exact.prim.inputs[0], index), budget=64)
    own, wanted = parts_of(bound), parts_of(keys)
    if [a.size for a in own] != [a.size for a in wanted]:
        return "the exponentials are normalised over another axis than the one that is summed with the values"
    renamed = substitute(inner, {a: Affine.of(b) for a, b in zip(own, wanted, strict=True)})
    if not same(renamed, numerator):
        return "the exponentials are divided by the sum of something else"
    if exact is not denominator:
        return "the softmax denominator has a constant added or is clamped"
    return _exponent(numerator.args[0], frozenset(wanted))


def _is_sum(term: Read) -> bool:
    return isinstance(term.prim.form, Einsum) and len(term.prim.inputs) == 1


def _exponent(term: Term, keys: frozenset[Atom]) -> Term:
    """Drop what is subtracted from the scores and does not depend on the key: it cancels."""
    match term:
        case Apply("sub", (scores, shift)) if not depends_on(shift) & keys and not _hides(shift, keys):
            return scores
        case _:
            return term


def _hides(term: Term, keys: frozenset[Atom]) -> bool:
    return any(isinstance(t, Read) and t.atoms & keys for t in leaves(term))
