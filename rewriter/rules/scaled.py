"""Products with constant factors, and the projection whose columns the factors belong to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rewriter.algebra.index import Affine, Atom, Index, einsum_index, fresh, operand_index, resolve
from rewriter.algebra.prims import Einsum, Map, Prim
from rewriter.algebra.term import VIEWS, Read, source
from rewriter.rules.constants import constant_of
from rewriter.rules.projections import Projection, projection_of

if TYPE_CHECKING:
    from rewriter.program.program import Program

__all__ = ["Scaled", "scaled"]


@dataclass(frozen=True, eq=False)
class Scaled:
    """A product with constant factors that a projection could have in its columns.

    Parameters
    ----------
    output, unscaled
        Names of the product, and of what is multiplied.
    projection
        Which is read there, through views and at most one sum of products.
    factors
        ``[width]``, in float64: 1 where a column is not read there.
    columns
        Those that are.
    steps
        Values between the projection and the product, as they are read.
    """

    output: str
    unscaled: str
    projection: Projection
    factors: np.ndarray
    columns: frozenset[int]
    steps: tuple[str, ...]

    def alone(self, program: Program) -> bool:
        """Whether nothing else reads the columns."""
        prims, graph = program.prims(), program.graph
        ours, reached = {self.output, *self.steps}, [self.projection.output]
        while reached:
            value = reached.pop()
            if value in graph.ends:
                return False
            for after in (v for node in graph.readers(value) for v in node.outputs):
                prim = prims.get(after)
                if prim is None or _is_view(prim):
                    reached.append(after)
                elif after not in ours and _reads(prim, value) and not self._apart(prims.get(value)):
                    return False
        once = self.steps[: next((k + 1 for k, v in enumerate(self.steps) if not _is_view(prims[v])), 0)]
        return not any(len(graph.readers(v)) != 1 or v in graph.ends for v in once)

    def _apart(self, view: Prim | None) -> bool:
        """Whether a view of the projection shows other columns only."""
        if view is None:
            return False
        read = _to_projection(Read(view, fresh(view.shape)), self.projection.output)
        shown = None if read is None else _columns(resolve(read.index)[-1])
        return shown is not None and self.columns.isdisjoint(shown.reshape(-1).tolist())


def scaled(prim: Prim) -> Scaled | None:
    """Return a product as one with constant factors of a projection's columns, or None."""
    if prim.value is None or prim.form not in (Map("mul"), Map("div")):
        return None
    a, b = prim.inputs
    sides = [(a, b), (b, a)] if prim.form == Map("mul") else [(a, b)]
    return next((found for x, g in sides if (found := _scaled(prim, x, g)) is not None), None)


def _scaled(prim: Prim, x: Prim, g: Prim) -> Scaled | None:
    index = fresh(prim.shape)
    *_, factor = source(Read(g, operand_index(g.shape, prim.shape, index)))
    if x.shape != prim.shape or x.value is None or (numbers := constant_of(factor.prim)) is None:
        return None
    if prim.form == Map("div"):
        with np.errstate(divide="ignore"):
            numbers = 1 / numbers
    for product, steps in _projections(Read(x, index)):
        projection = projection_of(product.prim, whole=False)
        if projection is None or projection.dtype != prim.dtype:
            continue
        found = _by_column(product.index, factor.index, numbers, projection)
        if found is not None:
            values, columns = found
            return Scaled(prim.value or "", x.value, projection, values, columns, steps)
    return None


def _projections(start: Read) -> Iterator[tuple[Read, tuple[str, ...]]]:
    """Yield projections behind views, and behind one sum of products, with the values in between."""
    steps = list(source(start))
    at = next((k for k, s in enumerate(steps) if projection_of(s.prim, whole=False) is not None), None)
    if at is not None:
        yield steps[at], _named(steps[:at])
        return
    last, names = steps[-1], _named(steps)
    if not isinstance(last.prim.form, Einsum) or len(last.prim.inputs) != 2:
        return
    indices, _ = einsum_index(last.prim.form, last.prim.shape, last.index, last.prim.inputs)
    operands = [Read(x, i) for x, i in zip(last.prim.inputs, indices, strict=True)]
    for own, other in (operands, operands[::-1]):
        steps = list(source(own))
        at = next((k for k, s in enumerate(steps) if projection_of(s.prim, whole=False) is not None), None)
        if at is not None and not _overlap(steps[at], other):
            yield steps[at], (*names, *_named(steps[:at]))


def _named(steps: Sequence[Read]) -> tuple[str, ...]:
    return tuple(s.prim.value for s in steps if s.prim.value is not None)


def _overlap(product: Read, other: Read) -> bool:
    """Whether the other factor of a sum of products shows columns that this one shows, too."""
    read = _to_projection(other, product.prim.value or "")
    if read is None:
        return False
    a, b = (_columns(resolve(r.index)[-1]) for r in (product, read))
    return a is None or b is None or not set(a.reshape(-1).tolist()).isdisjoint(b.reshape(-1).tolist())


def _to_projection(start: Read, output: str) -> Read | None:
    return next((step for step in source(start) if step.prim.value == output), None)


def _reads(prim: Prim, value: str) -> bool:
    """Whether a value is computed of another one, and not of its sizes alone."""
    reached = list(prim.inputs)
    while reached:
        at = reached.pop()
        if at.value == value:
            return True
        if at.value is None:
            reached += at.inputs
    return False


def _is_view(prim: Prim) -> bool:
    return isinstance(prim.form, VIEWS) or prim.form in (Map("identity"), Map("cast"))


def _by_column(
    product: Index, factor: Index, constant: np.ndarray, projection: Projection
) -> tuple[np.ndarray, frozenset[int]] | None:
    """Return the factor of each column, if it depends on nothing else, and the columns that are read."""
    *others, column = resolve(product)
    atoms = [a for a, _ in column.terms]
    width = projection.width.known()
    if width is None or any(a in atoms for dim in others for a, _ in dim.terms):
        return None
    read, index = _columns(column), resolve(factor)
    if read is None or any(a not in atoms for dim in index for a, _ in dim.terms):
        return None
    columns = frozenset(read.reshape(-1).tolist())
    if len(columns) != read.size:
        return None
    taken = tuple(_places(dim, atoms) for dim in index)
    factors = np.ones(width)
    factors[read] = constant[taken] if taken else constant
    return factors, columns


def _columns(column: Affine) -> np.ndarray | None:
    """Return the columns that an index goes through, an axis per atom, or None if they are not known."""
    known = column.start.static and all(s.static and a.size.static for a, s in column.terms)
    return _places(column, [a for a, _ in column.terms]) if known else None


def _places(dim: Affine, atoms: Sequence[Atom]) -> np.ndarray:
    """Return the numbers that an index takes, an axis per atom."""
    shape = [int(a.size) for a in atoms]
    grid = dict(zip(atoms, np.indices(shape), strict=True))
    return sum((grid[a] * int(s) for a, s in dim.terms), np.full(shape, int(dim.start)))
