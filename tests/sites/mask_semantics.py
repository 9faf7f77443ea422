"""What facts say, entry by entry, written down a second time: what the proofs are compared with."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rewriter.algebra.evaluate import evaluate
from rewriter.algebra.index import Affine, Atom
from rewriter.algebra.prims import Prim
from rewriter.algebra.sizes import ONE, Size
from rewriter.algebra.term import Read, Term, unfold
from rewriter.sites.formula import Axes
from rewriter.sites.masks import Mask, analyse
from rewriter.sites.patterns import Band, GridAxis
from rewriter.sites.site import Facts
from rewriter.sites.values import Known

__all__ = ["allowed", "analysed", "axes_of", "check", "numbers", "term_of"]


def axes_of(queries: Size, keys: Size, batch: Size | None = None) -> Axes:
    """Return the axes of a site with one atom per role."""
    outer = () if batch is None else (Atom(batch, "b"),)
    return Axes(outer, (), (), (Atom(queries, "i"),), (Atom(keys, "j"),), (), ())


def term_of(prim: Prim, axes: Axes) -> Term:
    """Return a tensor ``[queries, keys]``, or ``[batch, queries, keys]``, as a term over the axes."""
    atoms = (*axes.batch, *axes.queries, *axes.keys)[-len(prim.shape) :]
    return unfold(Read(prim, tuple(Affine(Size.of(0)) if a.size == ONE else Affine.of(a) for a in atoms)))


def analysed(bias: Prim, axes: Axes, known: Known | None = None) -> Mask:
    """Return what is proved of a bias."""
    return analyse(term_of(bias, axes), axes, False, known or Known())


def allowed(facts: Facts, rows: int, columns: int, sizes: Mapping[str, int]) -> np.ndarray:
    """Return where all facts that are no ids allow a query to see a key."""
    i, j = np.arange(rows)[:, None], np.arange(columns)[None, :]

    def n(size: Size) -> int:
        return int(size.substitute(sizes))

    def band(shape: Band) -> np.ndarray:
        ahead = j - i - n(shape.offset)
        low = np.ones_like(ahead, bool) if shape.left is None else ahead >= -shape.left
        return low if shape.right is None else low & (ahead <= shape.right)

    seen = np.ones((rows, columns), bool)
    if facts.band is not None:
        seen &= band(facts.band)
    if facts.blocks is not None:
        size = n(facts.blocks.size)
        seen &= (j + n(facts.blocks.keys)) // size == (i + n(facts.blocks.queries)) // size
    if facts.stride is not None:
        seen &= (j - i - n(facts.stride.offset)) % n(facts.stride.step) == 0
    if facts.prefix is not None and facts.prefix.length is not None:
        seen &= (j < n(facts.prefix.length)) | band(facts.prefix.band)
    if facts.segments is not None and facts.segments.lengths is not None:
        ids = np.repeat(np.arange(len(facts.segments.lengths)), facts.segments.lengths)
        seen &= ids[:, None] == ids[None, :]
    if facts.neighbourhood is not None:
        place = 1
        for axis in reversed(facts.neighbourhood.axes):
            length = 10**9 if axis.size is None else n(axis.size)
            at, to = i // place % length, j // place % length
            seen &= np.vectorize(lambda x, y, a=axis, m=length: near(int(x), int(y), a, m))(at, to)
            place *= length
    return seen


def near(x: int, y: int, axis: GridAxis, length: int) -> bool:
    """Whether an axis of a grid lets a query at ``x`` see a key at ``y``."""
    if not axis.clamped:
        low = axis.left is None or y - x >= -axis.left
        return low and (axis.right is None or y - x <= axis.right) and (y - x) % axis.dilation == 0
    assert axis.left is not None
    assert axis.right is not None
    line = [z for z in range(length) if z % axis.dilation == x % axis.dilation]
    width = (axis.left + axis.right) // axis.dilation + 1
    start = max(min(line.index(x) - axis.left // axis.dilation, len(line) - width), 0)
    return y in line[start : start + width]


def check(facts: Facts, visible: np.ndarray, sizes: Mapping[str, int], what: object = None) -> None:
    """Fail unless the facts are true of ``[queries, keys]``, and the whole truth where they claim to be."""
    shown = allowed(facts, visible.shape[0], visible.shape[1], sizes)
    assert not (visible & ~shown).any(), ("a key is seen that a fact hides", what, facts, sizes)
    if facts.unknown or facts.bias or facts.mask == "bias":
        return
    if facts.segments is not None and facts.segments.lengths is None:
        return
    if facts.prefix is not None and facts.prefix.length is None:
        return
    if facts.key_padding or facts.hides_keys:
        shown &= np.any(visible, axis=0, keepdims=True)
    if facts.hides_queries:
        shown &= np.any(visible, axis=1, keepdims=True)
    assert np.array_equal(visible, shown), ("the facts are not the whole mask", what, facts, sizes)


def numbers(prim: Prim, sizes: Mapping[str, int]) -> np.ndarray:
    """Return a tensor of constants and positions."""
    (array,) = evaluate([prim], {}, sizes)
    return array
