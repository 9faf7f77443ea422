"""A site that is asked for some of its queries only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from rewriter.algebra.index import Affine, Atom, Index, resolve
from rewriter.algebra.sizes import ONE, ZERO, Size
from rewriter.algebra.term import Term, substitute
from rewriter.demand.places import Places
from rewriter.sites.formula import Operand
from rewriter.sites.site import AttentionSite, Facts

__all__ = ["with_queries"]

Moved = Mapping[Atom, Affine]


def with_queries(
    site: AttentionSite, places: Places, shape: tuple[Size, ...], narrow: bool
) -> AttentionSite | None:
    """Return a site with some of its queries, or None where they cannot be told apart.

    Parameters
    ----------
    site
        Attention whose scores are products of queries and keys.
    places
        Of the queries that are left.
    shape
        Of the result.
    narrow
        Whether the tensor that queries are read from holds no others.
    """
    formula, axes = site.formula, site.formula.axes
    new = Atom(places.count, "queries")
    moved = _moved(axes.queries, places, new)
    if moved is None or formula.q is None:
        return None
    queries = () if places.count == ONE else (new,)
    at = formula.q.index
    q = Operand(formula.q.value, _closed(at, axes.queries, queries) if narrow else _index(at, moved))

    def term(old: Term | None) -> Term | None:
        return None if old is None else substitute(old, moved)

    bias = term(formula.bias)
    fewer = replace(
        formula,
        axes=replace(axes, queries=queries),
        q=q,
        factors=tuple((substitute(t, moved), divides) for t, divides in formula.factors),
        bias=bias,
        rest=bias,
        sink=term(formula.sink),
        output_index=_closed(formula.output_index, axes.queries, queries),
        output_shape=shape,
    )
    return replace(site, queries=places.count, formula=fewer, facts=Facts())


def _moved(old: tuple[Atom, ...], places: Places, new: Atom) -> Moved | None:
    """Return where the queries that are left were."""
    if len(old) == 1:
        step = Affine.of(new).times(Size.of(places.step)) if places.count != ONE else Affine(ZERO)
        return {old[0]: Affine(places.start).plus(step)}
    first = places.start.known()
    if places.count != ONE or first is None or any(a.size.known() is None for a in old):
        return None
    found: dict[Atom, Affine] = {}
    for atom in reversed(old):
        first, at = divmod(first, int(atom.size))
        found[atom] = Affine(Size.of(at))
    return found


def _index(index: Index, moved: Moved) -> Index:
    return tuple(_of(dim, moved) for dim in resolve(index))


def _of(dim: Affine, moved: Moved) -> Affine:
    total = Affine(dim.start)
    for atom, stride in dim.terms:
        total = total.plus(moved.get(atom, Affine.of(atom)).times(stride))
    return total


def _closed(index: Index, old: tuple[Atom, ...], new: tuple[Atom, ...]) -> Index:
    """Return an index on a tensor that holds the places that are left and no others."""
    return tuple(_dim(dim, old, new) for dim in resolve(index))


def _dim(dim: Affine, old: tuple[Atom, ...], new: tuple[Atom, ...]) -> Affine:
    if not any(a in old for a in dim.atoms):
        return dim
    found = dim.dense()
    assert found is not None, "queries lie in whole axes"
    order = list(found[0])
    at = order.index(old[0])
    order[at : at + len(old)] = new
    total, stride = Affine(ZERO), ONE
    for atom in reversed(order):
        total, stride = total.plus(Affine.of(atom).times(stride)), stride * atom.size
    return total
