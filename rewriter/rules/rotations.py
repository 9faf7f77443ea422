"""Rotary embeddings: values that are another one, rotated in pairs of features by angles of its place.

A rotation is read off two halves of a value: with the first ``a`` and the second ``b`` of each pair,

    a · cos - b · sin    and    b · cos + a · sin

however they are put together: halves or neighbours, ``x · cos + rotated · sin`` or one product each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rewriter.algebra.index import Affine, Atom, fresh, resolve
from rewriter.algebra.prims import Concat, Constant, Map, Prim, Reshape
from rewriter.algebra.sizes import Size
from rewriter.algebra.term import Apply, Read, origin, outermost, same, unfold

__all__ = ["Rotation", "rotation_of"]


@dataclass(frozen=True)
class Rotation:
    """A rotated value.

    Parameters
    ----------
    output
        The value.
    x, cos, sin
        Where they are read: over the atoms of the leading axes, and over ``feature`` or ``pair``.
    leading
        One atom per axis but the last; none for an axis of size 1.
    feature, pair
        The last axis of the value, and its pairs.
    interleaved
        Whether neighbours are a pair, not halves.
    """

    output: Prim
    x: Read
    cos: Read
    sin: Read
    leading: tuple[Affine, ...]
    feature: Atom
    pair: Atom
    interleaved: bool


def rotation_of(prim: Prim) -> Rotation | None:
    """Return a named value as a rotation, or None."""
    if prim.value is None or len(prim.shape) < 2 or not _may_be_one(prim):
        return None
    width = prim.shape[-1].known()
    if width is None or width < 2 or width % 2:
        return None
    return _read_as(prim, width, interleaved=False) or _read_as(prim, width, interleaved=True)


def _may_be_one(prim: Prim) -> bool:
    """Whether a value is a sum of products, or joined of two values; a view of a rotation is none."""
    if isinstance(prim.form, Reshape):
        (inner,) = prim.inputs
        return isinstance(inner.form, Concat) and rotation_of(inner) is None
    if isinstance(prim.form, Concat):
        return len(prim.inputs) == 2
    return prim.form == Map("add") and all(_behind(x).form in _PRODUCTS for x in prim.inputs)


_PRODUCTS = (Map("mul"), Map("neg"))


def _behind(prim: Prim) -> Prim:
    return origin(Read(prim, fresh(prim.shape))).prim


def _read_as(prim: Prim, width: int, *, interleaved: bool) -> Rotation | None:
    leading = fresh(prim.shape[:-1])
    half, pair = width // 2, Atom(width // 2)
    first = Affine.of(pair).times(Size.of(2 if interleaved else 1))
    second = first.plus(Affine(Size.of(1 if interleaved else half)))
    low, high = (_products(Read(prim, (*leading, at))) for at in (first, second))
    if low is None or high is None:
        return None
    for a, cos, b, sin in _sides(low):
        if not any(_is_other(a, cos, b, sin, found) for found in (high, high[::-1])):
            continue
        feature = Atom(width)
        x = _joined(a, b, pair, feature, 1 if interleaved else half)
        if x is not None:
            return Rotation(prim, x, cos, sin, leading, feature, pair, interleaved)
    return None


Signed = tuple[bool, Read, Read]
"""A product of two values, and whether it is taken away."""


def _products(start: Read) -> list[Signed] | None:
    """Return a value as a sum of two products, or None."""
    term = outermost(start)
    if not isinstance(term, Apply) or term.fn not in ("add", "sub"):
        return None
    first, second = (_product(x) if isinstance(x, Read) else None for x in term.args)
    if first is None or second is None:
        return None
    return [first, (second[0] != (term.fn == "sub"), *second[1:])]


def _product(start: Read) -> Signed | None:
    negative, at = _unsigned(start)
    term = outermost(at)
    if not isinstance(term, Apply) or term.fn != "mul":
        return None
    factors: list[Read] = []
    for arg in term.args:
        if not isinstance(arg, Read):
            return None
        minus, factor = _unsigned(arg)
        negative ^= minus
        factors.append(origin(factor))
    return negative, factors[0], factors[1]


def _unsigned(at: Read) -> tuple[bool, Read]:
    """Return whether a value is the negative of another, and that one."""
    negative = False
    while isinstance(term := outermost(at), Apply) and term.fn == "neg":
        (inner,) = term.args
        if not isinstance(inner, Read):
            break
        at, negative = inner, not negative
    return negative, at


def _sides(low: list[Signed]) -> Iterator[tuple[Read, Read, Read, Read]]:
    """Yield a, cos, b and sin of ``a · cos - b · sin``, in all ways to read it."""
    for plus, minus in (low, low[::-1]):
        if plus[0] or not minus[0]:
            continue
        for a, cos in (plus[1:], plus[:0:-1]):
            for b, sin in (minus[1:], minus[:0:-1]):
                yield a, cos, b, sin


def _is_other(a: Read, cos: Read, b: Read, sin: Read, high: list[Signed]) -> bool:
    """Whether two products are ``b · cos + a · sin``."""
    return not any(p[0] for p in high) and _is_product(high[0], b, cos) and _is_product(high[1], a, sin)


def _is_product(found: Signed, x: Read, factor: Read) -> bool:
    _, p, q = found
    return any(same(x, u) and _equal(factor, v) for u, v in ((p, q), (q, p)))


def _equal(a: Read, b: Read) -> bool:
    """Whether two factors are equal: of one formula, or known numbers."""
    if same(a, b) or same(unfold(a), unfold(b)):
        return True
    if a.prim is not b.prim or not isinstance(a.prim.form, Constant):
        return False
    first = second = np.asarray(a.prim.form.load())
    for axis, (p, q) in enumerate(zip(resolve(a.index), resolve(b.index), strict=True)):
        if p != q:
            places = _places(p), _places(q)
            if places[0] is None or places[1] is None:
                return False
            first, second = first.take(places[0], axis), second.take(places[1], axis)
    return np.array_equal(first, second)


def _places(at: Affine) -> np.ndarray | None:
    """Return the places that an index of one atom of known size goes through, or None."""
    if not at.start.static or len(at.terms) != 1 or at.terms[0][0].size.known() is None:
        return None
    ((atom, step),) = at.terms
    return int(at.start) + int(step) * np.arange(int(atom.size)) if step.static else None


def _joined(a: Read, b: Read, pair: Atom, feature: Atom, apart: int) -> Read | None:
    """Return the value that has both of each pair ``apart`` from each other, over all features."""
    if a.prim is not b.prim:
        return None
    index: list[Affine] = []
    for p, q in zip(resolve(a.index), resolve(b.index), strict=True):
        stride = dict(p.terms).get(pair)
        if stride is None:
            if p != q:
                return None
            index.append(p)
            continue
        step = stride.divide(Size.of(2)) if apart == 1 and pair.size != Size.of(1) else stride
        others = Affine(p.start, tuple(t for t in p.terms if t[0] is not pair))
        if step is None or q != p.plus(Affine(step * apart)):
            return None
        index.append(others.plus(Affine.of(feature).times(step)))
    return Read(a.prim, tuple(index)) if any(feature in d.atoms for d in index) else None
