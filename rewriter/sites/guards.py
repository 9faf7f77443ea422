"""Conditions that put zeros in place of weights where no key is visible."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewriter.algebra.index import Affine, Atom, resolve
from rewriter.algebra.prims import Constant, Prim, Reduce
from rewriter.algebra.sizes import product
from rewriter.algebra.term import Apply, Number, Read, Term, same
from rewriter.sites.hiding import MASKING
from rewriter.sites.sums import same_factors, under

__all__ = ["asks_for_empty_rows", "is_guard", "repeats_mask"]


_LARGEST = 1 << 24
"""Constants with more entries are not compared."""


def is_guard(tree: Term, weights: Term) -> bool:
    """Whether this is the weights, with 0 in place of those that are NaN."""
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
    inner, bound = under(top, axes, index)
    return same_factors([inner], [body], bound, keys)
