"""Sums of products: matmul, einsum, multiply-and-sum, a sum with ones and a plain sum are one term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from rewriter.algebra.index import Affine, Atom, einsum_index, resolve
from rewriter.algebra.prims import Concat, Constant, Einsum, Map, Prim
from rewriter.algebra.sizes import ONE, ZERO, product
from rewriter.algebra.term import Apply, Number, Read, Term, leaves, read, same, substitute, unfold
from rewriter.sites.search import moves

__all__ = [
    "Sum",
    "as_read",
    "as_sum",
    "factors_of",
    "is_matrix",
    "parts_of",
    "same_factors",
    "spelled",
    "under",
]

_SMALL = 1 << 16
_DEEP = 6


@dataclass(frozen=True)
class Sum:
    """``scale · sum over bound of the product of factors``.

    Parameters
    ----------
    whole
        The read of the sum itself.
    bound
        Atoms that are summed over.
    factors
        What is multiplied; known numbers are in ``scale``.
    """

    whole: Read
    bound: tuple[Atom, ...]
    factors: tuple[Term, ...]
    scale: float


def parts_of(atoms: Sequence[Atom]) -> tuple[Atom, ...]:
    """Return atoms as they are now split."""
    return tuple(p for a in atoms for p in a.parts())


def as_sum(at: Term, split: bool = True) -> Sum | None:
    """Return a read of a contraction as a sum of products, or None if it is none.

    Parameters
    ----------
    split
        Whether the factors of a product that is summed by itself are taken apart all the way; otherwise
        one step only.
    """
    if not isinstance(at, Read) or not isinstance(at.prim.form, Einsum):
        return None
    indices, bound = einsum_index(at.prim.form, at.prim.shape, at.index, at.prim.inputs)
    operands = [Read(x, i) for x, i in zip(at.prim.inputs, indices, strict=True)]
    if len(operands) == 1:
        scale, factors = factors_of(unfold(operands[0], budget=24 if split else 1), _DEEP if split else 1)
    else:
        scale, factors = 1.0, [t for t in operands if not _is_ones(t)]
    return Sum(at, parts_of(bound), tuple(factors), scale)


def factors_of(term: Term, depth: int = _DEEP) -> tuple[float, list[Term]]:
    """Return a product as a number and the other factors."""
    match term:
        case Number(value):
            return value, []
        case Apply("mul", (a, b)) if depth:
            (x, left), (y, right) = factors_of(a, depth - 1), factors_of(b, depth - 1)
            return x * y, left + right
        case Apply("div", (a, Number(value))) if depth and value:
            x, left = factors_of(a, depth - 1)
            return x / value, left
        case Apply("neg", (a,)) if depth:
            x, left = factors_of(a, depth - 1)
            return -x, left
        case _:
            return 1.0, [term]


def as_read(term: Term) -> Read | None:
    """Return a term as a read of one tensor; None if no tensor is that term."""
    return term if isinstance(term, Read) else getattr(term, "whole", None)


def spelled(factor: Term) -> list[Term]:
    """Return a factor as the factors that it is a product of, without numbers."""
    return factors_of(unfold(factor, budget=64) if isinstance(factor, Read) else factor)[1]


def same_factors(a: Sequence[Term], b: Sequence[Term], bound: Sequence[Atom], keys: Sequence[Atom]) -> bool:
    """Whether two products are the same when the atoms ``bound`` of the first are ``keys`` of the second."""
    own, wanted = parts_of(bound), parts_of(keys)
    if sorted(str(x.size) for x in own) != sorted(str(x.size) for x in wanted) or len(a) != len(b):
        return False
    for order in permutations(wanted) if len(wanted) <= 3 else [wanted]:
        if any(x.size != y.size for x, y in zip(own, order, strict=True)):
            continue
        names = {x: Affine.of(y) for x, y in zip(own, order, strict=True)}
        if _matched([substitute(t, names) for t in a], b):
            return True
    return False


def under(top: Prim, axes: Sequence[int], index: tuple[Affine, ...]) -> tuple[Term, list[Atom]]:
    """Return what a reduction runs over, as a term, and the atoms of the axes that it drops."""
    operand = top.inputs[0]
    bound = [Atom(operand.shape[axis]) for axis in axes]
    full = list(index)
    for axis, atom in zip(axes, bound, strict=True):
        full.insert(axis, Affine(ZERO) if atom.size == ONE else Affine.of(atom))
    return unfold(Read(operand, tuple(full)), budget=64), [a for a in bound if a.size != ONE]


def _matched(a: Sequence[Term], b: Sequence[Term]) -> bool:
    left = list(b)
    for term in a:
        at = next((k for k, other in enumerate(left) if same(term, other)), None)
        if at is None:
            return False
        left.pop(at)
    return not left


def is_matrix(term: Term) -> bool:
    """Whether everything that a term reads varies along two axes at most."""
    reads = [t for t in leaves(term) if isinstance(t, Read)]
    return all(sum(bool(dim.atoms) for dim in resolve(t.index)) <= 2 for t in reads)


def _may_be_known(prim: Prim) -> bool:
    """Whether a constant may lie behind views and copies, before an index is followed through them."""
    while moves(prim.form) and not isinstance(prim.form, Concat):
        prim = prim.inputs[0]
    return isinstance(prim.form, Constant | Concat)


def _is_ones(at: Read) -> bool:
    """Whether a tensor is known to hold nothing but ones."""
    if not _may_be_known(at.prim):
        return False
    prim: Prim = read(at.prim, at.index).prim
    while isinstance(prim.form, Map) and prim.form.fn in ("cast", "identity"):
        prim = prim.inputs[0]
    if not isinstance(prim.form, Constant):
        return False
    size = product(prim.shape).known()
    return size is not None and 0 < size <= _SMALL and bool((np.asarray(prim.form.load()) == 1).all())
