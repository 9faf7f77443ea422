"""Attention that reads the sources of its keys and values, and not their projections: how it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rewriter.algebra.index import Affine, Atom, resolve
from rewriter.algebra.prims import Prim
from rewriter.algebra.sizes import ONE, Size
from rewriter.forms import Canonical
from rewriter.lower.canonical import arrange_operand, emit_site, inputs_of, laid_out
from rewriter.program.program import Insertion
from rewriter.rules.projected import Projected, by_head
from rewriter.sites.formula import Operand

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.sites.site import AttentionSite

__all__ = ["Absorbed", "insertions"]


@dataclass(frozen=True, eq=False)
class Absorbed:
    """A site, and which of its operands are read before their projections.

    Parameters
    ----------
    site
        Attention whose scores are products of queries and keys.
    q, k, v
        None for an operand that is read as it is.
    """

    site: AttentionSite
    q: Projected | None
    k: Projected | None
    v: Projected | None

    @property
    def sides(self) -> tuple[Projected, ...]:
        """Those that are read before their projections."""
        return tuple(side for side in (self.q, self.k, self.v) if side is not None)

    @property
    def folded(self) -> bool:
        """Whether queries meet the source of the keys by one matrix for both projections: it is smaller."""
        if self.q is None or self.k is None:
            return False
        given, wanted, own = self.q.width, self.k.width, self.site.qk_dim
        return int(given * wanted) <= int(own * (given + wanted))

    @property
    def counted(self) -> bool:
        """Whether values have a bias, and the weights of a query may not sum to one.

        Then the source gets a last column of ones, for which the bias is the last row of the weight.
        """
        partial = self.site.formula.sink is not None or self.site.empty_row == "zero"
        return partial and self.v is not None and self.v.bias() is not None

    @property
    def order(self) -> tuple[Atom, ...]:
        """The atoms of the result, without the last axis: batch, heads, queries."""
        axes = self.site.formula.axes
        return (*axes.batch, *axes.heads, *axes.groups, *axes.queries)


def insertions(one: Absorbed, prims: Mapping[str, Prim], note: Mapping[str, str]) -> list[Insertion]:
    """Return the edits, in the order of the graph.

    Parameters
    ----------
    one
        What is written; keys or values are read before their projections.
    prims
        Of the program.
    note
        What is written into the graph about it.
    """
    edits = [] if one.q is None and one.k is None else [_asked(one, prims, note)]
    edits += [_with_ones(one, one.v, prims, note)] if one.v is not None and one.counted else []
    edits.append(_attended(one, prims, note, edits))
    return edits if one.v is None else [*edits, _valued(one, one.v, note)]


def sources(one: Absorbed) -> tuple[str, ...]:
    """Return the values of the graph that the site reads then."""
    return inputs_of(_rewired(one, None if one.q is None else one.q.projection.source, None))


def _name(site: AttentionSite, what: str) -> str:
    return f"{site.output.rpartition('/')[2]}.{what}"


def _asked(one: Absorbed, prims: Mapping[str, Prim], note: Mapping[str, str]) -> Insertion:
    """Return the queries that meet the source of the keys, one axis for each atom."""
    site, dtype, axes = one.site, one.site.dtype, one.site.formula.axes
    given, last, heads = site.formula.q, axes.features, (*axes.heads, *axes.groups)
    if one.q is not None:
        last, heads = (Atom(one.q.width, "in"),), ()
        given = one.q.source(last[0])
    assert given is not None, "the scores are products"
    source = given

    def build(e: Emitter, handles: Sequence[Any]) -> Handle:
        groups = (axes.batch, heads, axes.queries, last)
        x = arrange_operand(e, {source.value: handles[0]}, source, groups, dtype)
        batch, _, queries, features = e.shape(x)
        if e.shape(x)[1] != site.heads:
            x = e.expand(x, (batch, site.heads, queries, features))
        for weight, bias in _asking(one):
            x = _biased(e, by_head(e, x, weight, dtype), bias, dtype)
        return e.reshape(x, _asked_shape(one))

    shapes = (prims[source.value].shape,)
    return Insertion(_name(site, "asked"), (source.value,), shapes, build, metadata=note)


def _asking(one: Absorbed) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Return the matrices by head, each with a bias, that queries are multiplied by."""
    given = [] if one.q is None else [(one.q.weight(), one.q.bias())]
    if one.k is None:
        return given
    wanted = one.k.weight().swapaxes(1, 2)
    if not one.folded:
        return [*given, (wanted, None)]
    ((first, bias),) = given
    whole = np.repeat(wanted, len(first) // len(wanted), 0).astype(np.float64)
    merged = None if bias is None else np.einsum("hd,hdw->hw", bias, whole).astype(first.dtype)
    return [((first @ whole).astype(first.dtype), merged)]


def _asked_order(one: Absorbed) -> tuple[Atom, ...]:
    """Return the atoms of the queries; a batch axis that they do not have is left out."""
    formula = one.site.formula
    assert formula.q is not None, "the scores are products"
    index = formula.q.index if one.q is None else one.q.rows
    batch = any(a in dim.atoms for dim in resolve(index) for a in formula.axes.batch)
    return one.order if batch else one.order[len(formula.axes.batch) :]


def _asked_shape(one: Absorbed) -> tuple[Size, ...]:
    features = [a.size for a in one.site.formula.axes.features] if one.k is None else [one.k.width]
    return (*(a.size for a in _asked_order(one)), *features)


def _with_ones(one: Absorbed, v: Projected, prims: Mapping[str, Prim], note: Mapping[str, str]) -> Insertion:
    """Return the source of the values with a last column of ones."""
    shape = prims[v.projection.source].shape

    def build(e: Emitter, handles: Sequence[Any]) -> Handle:
        return e.pad(handles[0], len(shape) - 1, 0, 1, 1.0)

    return Insertion(_name(one.site, "ones"), (v.projection.source,), (shape,), build, metadata=note)


def _attended(
    one: Absorbed, prims: Mapping[str, Prim], note: Mapping[str, str], before: Sequence[Insertion]
) -> Insertion:
    """Return attention itself; where the values are absorbed, its result has one axis for each atom."""
    made = {edit.name for edit in before}
    asked, ones = (
        name if name in made else None for name in (_name(one.site, "asked"), _name(one.site, "ones"))
    )
    site = _rewired(one, asked, ones)
    names = inputs_of(site)
    shapes = {name: prims[name].shape for name in names if name not in made}
    if asked is not None:
        shapes[asked] = _asked_shape(one)
    if ones is not None and one.v is not None:
        *rows, width = prims[one.v.projection.source].shape
        shapes[ones] = (*rows, width + 1)

    def build(e: Emitter, handles: Sequence[Any]) -> Handle:
        return emit_site(site, e, dict(zip(names, handles, strict=True)), _one_head)

    instead = site.output if one.v is None else None
    ordered = tuple(shapes[name] for name in names)
    return Insertion(_name(site, "attended"), names, ordered, build, instead, metadata=note)


def _one_head(e: Emitter, a: Canonical) -> Handle:
    """Emit attention; heads that share keys are more queries of one head, where nothing tells them apart."""
    from rewriter.kernels.softmax.form import Softmax

    batch, heads, queries, features = e.shape(a.q)
    alike = a.bias is None or e.shape(a.bias)[1:3] == (ONE, ONE)
    if e.shape(a.k)[1] != ONE or a.band is not None or a.sink is not None or not alike:
        return Softmax().lower(e, a)
    rows = heads * queries
    q = e.reshape(a.q, (batch, ONE, rows, features))
    joined = replace(a, q=q, shape={**a.shape, "H": ONE, "I": rows})
    return e.reshape(Softmax().lower(e, joined), (batch, heads, queries, e.shape(a.v)[3]))


def _rewired(one: Absorbed, asked: str | None, ones: str | None) -> AttentionSite:
    """Return the site with its operands read elsewhere: queries and values from values of these names."""
    site, formula, axes = one.site, one.site.formula, one.site.formula.axes
    if one.k is not None and one.v is not None:
        axes = replace(axes, heads=(), groups=(*axes.heads, *axes.groups))  # all heads read the same
    if one.k is not None:
        axes = replace(axes, features=(Atom(one.k.width, "in"),))
        formula = replace(formula, k=one.k.source(axes.features[0]))
    if one.v is not None:
        axes = replace(axes, v_features=(Atom(_value_width(one, one.v), "in"),))
        order = (*one.order, *axes.v_features)
        v = one.v.source(axes.v_features[0])
        formula = replace(
            formula,
            v=v if ones is None else replace(v, value=ones),
            output_index=tuple(Affine.of(a) for a in order),
            output_shape=tuple(a.size for a in order),
        )
    if asked is not None:
        index = (*(Affine.of(a) for a in _asked_order(one)), *(Affine.of(a) for a in axes.features))
        formula = replace(formula, q=Operand(asked, index))
    return replace(site, formula=replace(formula, axes=axes))


def _value_width(one: Absorbed, v: Projected) -> Size:
    return v.width + 1 if one.counted else v.width


def _valued(one: Absorbed, v: Projected, note: Mapping[str, str]) -> Insertion:
    """Return the result, of what the weights make of the source of the values."""
    site, formula, axes = one.site, one.site.formula, one.site.formula.axes
    width = _value_width(one, v)
    shape = (*(a.size for a in one.order), width)

    def build(e: Emitter, handles: Sequence[Any]) -> Handle:
        x = e.reshape(handles[0], (site.batch, site.heads, site.queries, width))
        weight, bias = v.weight(), v.bias()
        if one.counted and bias is not None:
            weight, bias = np.concatenate([weight, bias[:, None]], 1), None
        x = _biased(e, by_head(e, x, weight, site.dtype), bias, site.dtype)
        return laid_out(e, x, (*one.order, *axes.v_features), formula.output_index, formula.output_shape)

    name = _name(site, "attended")
    return Insertion(_name(site, "valued"), (name,), (shape,), build, instead=site.output, metadata=note)


def _biased(e: Emitter, x: Handle, bias: np.ndarray | None, dtype: str) -> Handle:
    """Add a bias by head, ``[G, D]``, to ``[B, H, I, D]``."""
    if bias is None:
        return x
    shared = int(e.shape(x)[1]) // len(bias)
    return e.map("add", x, e.constant(np.repeat(bias, shared, 0)[:, None], dtype))
