"""The token grid of a site and the tokens before it, where the graph shows them."""

from __future__ import annotations

from collections.abc import Sequence

from rewriter.algebra.index import Affine, Atom, resolve
from rewriter.algebra.sizes import ONE, ZERO, Size, product
from rewriter.sites.formula import Formula, Operand
from rewriter.sites.lineage import Axis, Part, Piece, cut, kind_of, merged, regroup, size_of
from rewriter.sites.origin import Origin
from rewriter.sites.site import Geometry

__all__ = ["geometry", "geometry_along", "pieces_along"]


def geometry(origin: Origin, formula: Formula) -> Geometry | None:
    """Return where the queries come from, or None if the graph does not show it.

    Where there are as many keys as queries, the keys are proved to come from the same places.
    """
    axes = formula.axes
    found = geometry_along(origin, formula.q, axes.queries)
    if found is None or axes.size("queries") != axes.size("keys"):
        return found
    return found if geometry_along(origin, formula.k, axes.keys) == found else None


def geometry_along(origin: Origin, operand: Operand | None, atoms: Sequence[Atom]) -> Geometry | None:
    """Return where the places along atoms of an operand, slow to fast, come from, or None."""
    if operand is None:
        return None
    axis = pieces_along(origin, operand, [p for a in atoms for p in a.parts()])
    if axis is None:
        return None
    if len(axis) == 1 and axis[0].parts:
        return _after_prefix(axis[0].parts)
    grid = _grid(axis)
    return None if grid is None else Geometry(0, grid)


def pieces_along(origin: Origin, operand: Operand, atoms: Sequence[Atom]) -> Axis | None:
    """Return the pieces that atoms run through, one after the other."""
    axes = origin.axes(origin.prims[operand.value])
    index = resolve(operand.index)
    pieces: list[Piece] = []
    left = list(atoms)
    while left:
        places = [k for k, dim in enumerate(index) if left[0] in dim.atoms]
        if len(places) != 1:
            return None
        dim, axis = index[places[0]], axes[places[0]]
        count = len(dim.atoms)
        whole = dim.dense()
        if whole == (tuple(left[:count]), ONE):
            found: Axis | None = cut(axis, dim.start, product(a.size for a in left[:count]), 1)
        else:
            count, found = 1, _factor(axis, dim, left[0])
        if found is None:
            return None
        pieces += found
        left = left[count:]
    return merged(pieces)


def _factor(axis: Axis, dim: Affine, atom: Atom) -> Axis | None:
    """Return the pieces of an axis that one of several atoms on it runs through."""
    stride = dict(dim.terms)[atom]
    high = size_of(axis).divide(atom.size * stride)
    if high is None or dim.start != ZERO:
        return None
    return regroup([axis], [high, atom.size, stride])[1]


def _after_prefix(parts: Sequence[Part]) -> Geometry | None:
    *before, body = parts
    grid = _grid(body.axis)
    if any(_grid(part.axis) is not None for part in before):
        return None
    if grid is None and not (all(p.learned for p in before) and not body.learned and _is_sequence(body)):
        return None
    return Geometry(sum((p.size for p in before), ZERO).known(), grid)


def _is_sequence(part: Part) -> bool:
    return kind_of(part.axis) == "token"


def _grid(axis: Axis) -> tuple[Size, ...] | None:
    """Return the sizes of two or more axes of one tensor of which this axis is the row-major product."""
    sources = [p.source for p in axis if p.source is not None and p.kind == "token"]
    distinct = {s.axis for s in sources}
    values = {s.value for s in sources}
    if len(axis) < 2 or len(sources) < len(axis) or len(distinct) < len(axis) or len(values) > 1:
        return None
    return tuple(p.size for p in axis)
