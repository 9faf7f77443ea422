"""Attention and what its weights are blended with, beside each other instead of in one matrix of weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from rewriter.algebra.index import Atom
from rewriter.algebra.prims import Prim
from rewriter.algebra.sizes import ONE
from rewriter.algebra.term import Apply, Number, Term, depends_on
from rewriter.forms import Canonical
from rewriter.lower.canonical import emit_site, emit_term, inputs_of
from rewriter.program.program import Insertion
from rewriter.rules.monomials import Factor, Monomial
from rewriter.sites.operands import native_reads
from rewriter.sites.values import Known

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.sites.site import AttentionSite

__all__ = ["Blended", "Matrix", "insertion", "matrix_of"]


@dataclass(frozen=True, eq=False)
class Matrix:
    """A known matrix over queries and keys, one for each head or one for all.

    ``every`` for all keys, ``own`` for the key at the place of the query, ``full`` for what is neither.

    Parameters
    ----------
    every, own
        ``[H or 1, I]``, or None.
    full
        ``[H or 1, I, J]``, or None.
    """

    every: np.ndarray | None = None
    own: np.ndarray | None = None
    full: np.ndarray | None = None

    def total(self, keys: int) -> np.ndarray:
        """Return the sum over the keys: ``[H or 1, I]``."""
        found = np.zeros((1, 1))
        if self.every is not None:
            found = found + keys * self.every
        if self.own is not None:
            found = found + self.own
        return found if self.full is None else found + self.full.sum(-1)


@dataclass(frozen=True, eq=False)
class Blended:
    """A site whose weights are a sum.

    Parameters
    ----------
    site
        Attention with the softmax alone.
    shares
        What the softmax is multiplied by, added up.
    addends
        What is added to it, with the matrix of each.
    renormalised
        Whether the sum is divided by its sum over the keys.
    """

    site: AttentionSite
    shares: tuple[Monomial, ...]
    addends: tuple[tuple[Monomial, Matrix], ...]
    renormalised: bool


def matrix_of(site: AttentionSite, monomial: Monomial, known: Known) -> Matrix | str:
    """Return the matrix among the factors of an addend, or why there is none.

    Parameters
    ----------
    site
        Whose weights it is added to.
    monomial
        What is added.
    known
        Of the program.
    """
    if not monomial.matrices:
        return Matrix(every=np.ones((1, 1)))
    axes = site.formula.axes
    term: Term = reduce(_times, monomial.matrices, _ONE)
    heads = (*axes.heads, *axes.groups)
    heads = heads if depends_on(term) & {*heads} else ()
    atoms = (*heads, *axes.queries, *axes.keys)
    if not known.closed_term(term) or not depends_on(term) <= {*atoms}:
        return "what is added to its weights key by key is not known"
    if not all(a.size.static for a in atoms):
        return f"the size of what is added to its weights is not known: {site.queries} by {site.keys}"
    found = known.array(term, atoms)
    if found is None:
        return "what is added to its weights cannot be computed"
    return _split(found.reshape(-1, int(site.queries), int(site.keys)))


_ONE: Term = Number(1.0)


def _times(term: Term, factor: Factor) -> Term:
    return Apply("div" if factor[1] else "mul", (term, factor[0]), None)


def _split(full: np.ndarray) -> Matrix:
    """Tell a diagonal, and what is the same for all keys, from a matrix that is neither."""
    _, queries, keys = full.shape
    if queries != keys or keys < 2:
        return Matrix(full=full)
    own = np.diagonal(full, axis1=1, axis2=2)
    every = np.where(np.arange(keys) == 0, full[:, :, 1], full[:, :, 0])
    rest = full - every[:, :, None]
    rest[:, np.arange(keys), np.arange(keys)] = 0
    if rest.any():
        return Matrix(full=full)
    return Matrix(every if every.any() else None, own - every)


def insertion(one: Blended, prims: Mapping[str, Prim], note: Mapping[str, str]) -> Insertion:
    """Return the edit.

    Parameters
    ----------
    one
        What is written.
    prims
        Of the program.
    note
        What is written into the graph about it.
    """
    rows = [m.rows for m in (*one.shares, *(m for m, _ in one.addends))]
    more = (r.prim.value for factors in rows for term, _ in factors for r in native_reads(term))
    names = tuple(dict.fromkeys([*inputs_of(one.site), *(name for name in more if name)]))

    def build(e: Emitter, handles: Sequence[Any]) -> Handle:
        given = dict(zip(names, handles, strict=True))
        return emit_site(one.site, e, given, lambda e, a: _Writer(one, e, a, given).result())

    name = f"{one.site.output.rpartition('/')[2]}.blended"
    shapes = tuple(prims[n].shape for n in names)
    return Insertion(name, names, shapes, build, instead=one.site.output, metadata=note)


@dataclass(frozen=True)
class _Writer:
    """Emits one blend; everything has the axes batch, heads, queries, and features or keys."""

    one: Blended
    e: Emitter
    a: Canonical
    given: Mapping[str, Handle]

    def result(self) -> Handle:
        from rewriter.kernels.softmax.form import Softmax

        shares = self._sum(self._rows(m) for m in self.one.shares)
        found = self._times(Softmax().lower(self.e, self.a), shares)
        for monomial, matrix in self.one.addends:
            for part in self._parts(matrix):
                found = self.e.map("add", found, self._times(part, self._rows(monomial)))
        return self.e.map("div", found, self._total(shares)) if self.one.renormalised else found

    def _total(self, shares: Handle | None) -> Handle:
        """Emit what all weights of a query sum to: those of the softmax sum to one."""
        keys = int(self.one.site.keys) if self.one.site.keys.static else 0
        found = [shares if shares is not None else self._number(np.ones((1, 1)))]
        for monomial, matrix in self.one.addends:
            found.append(self._times(self._number(matrix.total(keys)), self._rows(monomial)))
        return self._sum(found)

    def _parts(self, matrix: Matrix) -> Iterable[Handle]:
        e, v = self.e, self._values()
        if matrix.every is not None:
            yield self._times(e.reduce("sum", v, 2), self._number(matrix.every))
        if matrix.own is not None:
            yield self._times(v, self._number(matrix.own))
        if matrix.full is not None:
            yield e.matmul(e.constant(matrix.full[None], e.dtype(v)), v)

    def _values(self) -> Handle:
        """Return the values of every head of queries."""
        e, v = self.e, self.a.v
        batch, groups, keys, width = e.shape(v)
        heads = self.a.shape["H"]
        if heads == groups:
            return v
        shared = heads.divide(groups)
        assert shared is not None, "keys are shared by whole groups of heads"
        v = e.expand(e.reshape(v, (batch, groups, ONE, keys, width)), (batch, groups, shared, keys, width))
        return e.reshape(v, (batch, heads, keys, width))

    def _rows(self, monomial: Monomial) -> Handle | None:
        """Emit the factors of queries; None for one."""
        e, dtype, axes = self.e, self.one.site.dtype, self.one.site.formula.axes
        groups: list[Sequence[Atom]] = [axes.batch, (*axes.heads, *axes.groups), axes.queries, ()]
        number = None if monomial.number == 1.0 else e.constant(monomial.number, dtype)
        found: Handle | None = number
        for term, divides in monomial.rows:
            x = emit_term(e, self.given, term, groups, dtype)
            if divides:
                found = e.map("div", self._number(np.ones((1, 1))) if found is None else found, x)
            else:
                found = self._times(x, found)
        return found

    def _number(self, rows: np.ndarray) -> Handle:
        """Emit known numbers by head and query; one for all is a scalar."""
        dtype = self.one.site.dtype
        return self.e.constant(float(rows[0, 0]) if rows.size == 1 else rows[None, :, :, None], dtype)

    def _times(self, x: Handle, factor: Handle | None) -> Handle:
        return x if factor is None else self.e.map("mul", x, factor)

    def _sum(self, terms: Iterable[Handle | None]) -> Handle | None:
        found = list(terms)
        if found == [None]:
            return None
        given = [self._number(np.ones((1, 1))) if x is None else x for x in found]
        return reduce(lambda x, y: self.e.map("add", x, y), given)
