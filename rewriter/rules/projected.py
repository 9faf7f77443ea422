"""Operands of attention that are projections, followed through the views between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rewriter.algebra.index import Affine, Atom, Index, resolve
from rewriter.algebra.prims import Prim
from rewriter.algebra.sizes import Size
from rewriter.algebra.term import Read, source
from rewriter.rules.projections import Projection, known, projection_of
from rewriter.sites.formula import Operand

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle

__all__ = ["Projected", "by_head", "projected"]


@dataclass(frozen=True, eq=False)
class Projected:
    """Queries, keys or values as columns of a projection: ``x[rows] · weight[:, column] + bias[column]``.

    Parameters
    ----------
    projection
        Of the source ``x``.
    rows
        Where ``x`` is read, without its last axis, over the atoms of the site.
    heads, features
        Atoms that the column depends on.
    column
        Which column it is.
    through
        Names of the values from the projection to the operand, both of them included.
    """

    projection: Projection
    rows: Index
    heads: tuple[Atom, ...]
    features: tuple[Atom, ...]
    column: Affine
    through: frozenset[str]

    @property
    def width(self) -> Size:
        """How many features the source has."""
        return self.projection.weight.shape[0]

    def source(self, width: Atom) -> Operand:
        """Return the read of the source, with its last axis at an atom."""
        return Operand(self.projection.source, (*self.rows, Affine.of(width)))

    def weight(self) -> np.ndarray:
        """Return the weight by head: ``[heads, in, features]``."""
        return np.moveaxis(known(self.projection.weight)[:, self._columns()], 0, 1)

    def bias(self) -> np.ndarray | None:
        """Return the bias by head, or None if there is none or it is zero: ``[heads, features]``."""
        bias = self.projection.bias
        found = None if bias is None else known(bias)[self._columns()]
        return found if found is not None and found.any() else None

    def _columns(self) -> np.ndarray:
        atoms = (*self.heads, *self.features)
        at = dict(zip(atoms, np.indices([int(a.size) for a in atoms]), strict=True))
        terms = (at[atom] * int(stride) for atom, stride in self.column.terms)
        columns = sum(terms, np.full([int(a.size) for a in atoms], int(self.column.start)))
        heads = int(np.prod([int(a.size) for a in self.heads], dtype=np.int64))
        return np.asarray(columns).reshape(heads, -1)


def projected(
    prims: Mapping[str, Prim],
    operand: Operand | None,
    rows: Sequence[Atom],
    heads: Sequence[Atom],
    features: Sequence[Atom],
    dtype: str,
) -> Projected | None:
    """Return an operand as a projection, or None if it is none.

    Parameters
    ----------
    prims
        Of the program.
    operand
        Of a site.
    rows
        Atoms that may choose the row of the source: those of the batch, and of queries or keys.
    heads, features
        Atoms that may choose the column, of known sizes.
    dtype
        Of the site; nothing between is of another one.
    """
    if operand is None or operand.pieces or any(a.size.known() is None for a in (*heads, *features)):
        return None
    # looking through a reshape may cut atoms: those of the site stay whole
    copies = {a: Atom(a.size, a.name) for a in (*rows, *heads, *features)}
    at = _renamed(resolve(operand.index), copies)
    through: set[str] = set()
    for step in source(Read(prims[operand.value], at)):
        if step.prim.dtype != dtype:
            return None
        if step.prim.value is not None:
            through.add(step.prim.value)
        found = projection_of(step.prim, whole=False)
        if found is not None:
            break
    else:
        return None
    if found.dtype != dtype or any(a.kids is not None for a in copies.values()):
        return None
    *row, column = _renamed(resolve(step.index), {new: old for old, new in copies.items()})
    plain = column.start.static and all(stride.static for _, stride in column.terms)
    apart = all(dim.atoms <= set(rows) for dim in row) and column.atoms <= {*heads, *features}
    if not plain or not apart:
        return None
    return Projected(found, tuple(row), tuple(heads), tuple(features), column, frozenset(through))


def _renamed(index: Index, names: Mapping[Atom, Atom]) -> Index:
    return tuple(_sum(dim.start, ((names.get(a, a), s) for a, s in dim.terms)) for dim in index)


def _sum(start: Size, terms: Iterable[tuple[Atom, Size]]) -> Affine:
    total = Affine(start)
    for atom, stride in terms:
        total = total.plus(Affine.of(atom).times(stride))
    return total


def by_head(e: Emitter, x: Handle, weight: np.ndarray, dtype: str) -> Handle:
    """Emit one product for each head.

    Parameters
    ----------
    x
        ``[B, H, I, D]``.
    weight
        ``[G, D, C]``: head ``h`` meets ``weight[h // (H // G)]``.
    dtype
        Of both.

    Returns
    -------
    Handle
        ``[B, H, I, C]``.
    """
    groups, _, width = weight.shape
    if groups == 1:
        return e.matmul(x, e.constant(np.ascontiguousarray(weight[0]), dtype))
    batch, heads, queries, features = e.shape(x)
    shared = heads.divide(groups)
    assert shared is not None, "keys are shared by whole groups of heads"
    rows = shared * queries
    # one product per group, of the rows of the whole batch: the weight is not repeated for each element
    x = e.permute(e.reshape(x, (batch, groups, rows, features)), (1, 0, 2, 3))
    x = e.reshape(x, (groups, batch * rows, features))
    x = e.matmul(x, e.constant(np.ascontiguousarray(weight), dtype))
    x = e.permute(e.reshape(x, (groups, batch, rows, width)), (1, 0, 2, 3))
    return e.reshape(x, (batch, heads, queries, width))
