"""Where the axes of a tensor come from: pieces of other axes, regrouped by views.

An axis is the row-major product of *pieces*. A piece is cut from a *source*: one axis of an input, or one
place axis of a convolution. A concatenation is a single piece with *parts*. What is not known is a piece
without a source, which is always safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Literal, NamedTuple

from rewriter.algebra.sizes import ONE, ZERO, Size, product

__all__ = [
    "Axis",
    "AxisKind",
    "Part",
    "Piece",
    "Source",
    "concatenated",
    "cut",
    "joined",
    "kind_of",
    "merged",
    "opaque",
    "regroup",
    "resized",
    "shown",
    "size_of",
    "with_kind",
]

AxisKind = Literal["token", "feature", "mixed"]
"""What an axis counts. ``token``: places of the data; projections act on each. ``feature``: what the weights
of a projection make. ``mixed``: operands disagree, or it is of both."""


class Source(NamedTuple):
    """An axis that pieces are cut from.

    Parameters
    ----------
    value
        Name of the native value.
    axis
        Which axis of it.
    steps
        Strides other than 1 of slices along it.
    """

    value: str
    axis: int
    steps: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """One operand of a concatenation along its axis; ``learned`` if it is a weight."""

    size: Size
    axis: Axis
    learned: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """A factor of an axis.

    Parameters
    ----------
    size
        Entries, not 1.
    kind
        See `AxisKind`; None if unknown.
    source
        The axis it is cut from, or None if unknown.
    stride
        Entries of the source per step.
    parts
        What was concatenated, first to last.
    """

    size: Size
    kind: AxisKind | None = None
    source: Source | None = None
    stride: Size = ONE
    parts: tuple[Part, ...] = ()


Axis = tuple[Piece, ...]
"""Pieces, slow to fast; an axis of size 1 has none."""


def opaque(size: Size, kind: AxisKind | None = None) -> Axis:
    """Return an axis of which no more than its kind is known."""
    return () if size == ONE else (Piece(size, kind),)


def size_of(axis: Axis) -> Size:
    """Return how many entries an axis has."""
    return axis[0].size if len(axis) == 1 else product(p.size for p in axis)


def shown(axis: Axis) -> bool:
    """Whether more is known of an axis than its kind."""
    return any(p.source is not None or p.parts for p in axis)


def kind_of(axis: Axis) -> AxisKind | None:
    """Return the kind of all pieces, ``mixed`` if they differ."""
    kinds = {p.kind for p in axis}
    return kinds.pop() if len(kinds) == 1 else "mixed" if kinds else None


def with_kind(axis: Axis, kind: AxisKind | None) -> Axis:
    """Return the axis with a kind for the pieces that have none."""
    if kind is None or all(p.kind is not None for p in axis):
        return axis
    return tuple(p if p.kind is not None else _of_kind(p, kind) for p in axis)


def _of_kind(piece: Piece, kind: AxisKind) -> Piece:
    parts = tuple(replace(q, axis=with_kind(q.axis, kind)) for q in piece.parts)
    return replace(piece, kind=kind, parts=parts)


def joined(axes: Sequence[Axis]) -> Axis:
    """Return what is known of an axis that several tensors share, place by place.

    What is not shown gives way to what is, and ``mixed`` to a kind of its own; if two tensors show
    different things, nothing is known.
    """
    return reduce(_join, axes)


def _join(a: Axis, b: Axis) -> Axis:
    if a is b or a == b:
        return a
    if not (shown(a) and shown(b)):
        main, other = (a, b) if shown(a) else (b, a)
        kind = kind_of(other)
        if shown(main):
            return with_kind(main, kind)
        return tuple(replace(p, kind=_meet(p.kind, kind)) for p in main)
    if _structure(a) == _structure(b):
        return tuple(replace(p, kind=_meet(p.kind, q.kind)) for p, q in zip(a, b, strict=True))
    return opaque(size_of(a), _meet(kind_of(a), kind_of(b)))


def _meet(a: AxisKind | None, b: AxisKind | None) -> AxisKind | None:
    if a == b or b is None:
        return a
    if a is None or a == "mixed":
        return b
    return a if b == "mixed" else "mixed"


def _structure(axis: Axis) -> object:
    return [(p.size, p.source, p.stride, [(q.size, _structure(q.axis)) for q in p.parts]) for p in axis]


def resized(axis: Axis, size: Size, new_source: Source | None) -> Axis:
    """Return an axis of places after a sliding window or an interpolation along it.

    Parameters
    ----------
    new_source
        What the result is cut from if the axis itself is not known to be one piece.
    """
    kind = kind_of(axis) or "token"
    if size_of(axis) == size and (shown(axis) or new_source is None):
        return with_kind(axis, kind)
    if len(axis) == 1 and axis[0].source is not None:
        return () if size == ONE else (replace(axis[0], size=size, kind=kind),)
    return () if size == ONE else (Piece(size, kind, new_source),)


def cut(axis: Axis, start: Size, size: Size, step: int) -> Axis:
    """Return the entries ``start + step * i`` of an axis, ``i < size``."""
    if step == 1 and size == size_of(axis):
        return axis
    if len(axis) == 1 and axis[0].parts and step == 1:
        return _between(axis[0], start, start + size)
    if len(axis) == 1 and axis[0].source is not None:
        source = axis[0].source
        if step != 1:
            source = source._replace(steps=(*source.steps, step))
        return () if size == ONE else (replace(axis[0], size=size, source=source),)
    return opaque(size, kind_of(axis))


def _between(piece: Piece, first: Size, end: Size) -> Axis:
    """Return a range of a concatenation: whole parts, or a range of one part."""
    begins, kept = ZERO, []
    for part in piece.parts:
        ends = begins + part.size
        if (begins - first).at_least(0) and (end - ends).at_least(0):
            kept.append(part)
        elif (first - begins).at_least(0) and (ends - end).at_least(0):
            return with_kind(cut(part.axis, first - begins, end - first, 1), piece.kind)
        begins = ends
    if sum((p.size for p in kept), ZERO) != end - first:
        return opaque(end - first, piece.kind)
    return with_kind(kept[0].axis if len(kept) == 1 else concatenated(kept), piece.kind)


def concatenated(parts: Sequence[Part]) -> Axis:
    """Return the axis that holds parts one after the other.

    Parts that are concatenations are opened, empty ones (a cache before its first token) are dropped.
    """
    opened: list[Part] = []
    parts = [part for part in parts if part.size != ZERO]
    if len(parts) == 1:
        return parts[0].axis
    for part in parts:
        inner = part.axis[0].parts if len(part.axis) == 1 else ()
        opened.extend(inner if inner and not part.learned else (part,))
    total = sum((p.size for p in opened), ZERO)
    kinds = [kind for p in opened if (kind := kind_of(p.axis)) is not None]
    return () if total == ONE else (Piece(total, reduce(_meet, kinds, None), parts=tuple(opened)),)


def regroup(old: Sequence[Axis], new: Sequence[Size]) -> tuple[Axis, ...]:
    """Return the axes of a row-major regrouping to the shape ``new``."""
    result: dict[int, Axis] = {k: () for k, n in enumerate(new) if n == ONE}
    axes = [axis for axis in old if axis]
    targets = [k for k, n in enumerate(new) if n != ONE]
    while axes and targets and size_of(axes[0]) == new[targets[0]]:
        result[targets.pop(0)] = axes.pop(0)
    while axes and targets and size_of(axes[-1]) == new[targets[-1]]:
        result[targets.pop()] = axes.pop()
    if not targets:
        return tuple(result[k] for k in range(len(new)))
    pieces = [p for axis in axes for p in axis]
    kind = kind_of(tuple(pieces))
    while targets:
        taken = _take(pieces, new[targets[-1]])
        if taken is None:
            break
        result[targets.pop()] = taken
    return tuple(result.get(k, opaque(n, kind)) for k, n in enumerate(new))


def _take(pieces: list[Piece], size: Size) -> Axis | None:
    """Take pieces that make up ``size`` entries off the fast end; cut one if need be."""
    found: list[Piece] = []
    while size != ONE:
        if not pieces:
            return None
        piece = pieces.pop()
        rest = size.divide(piece.size)
        if rest is not None:
            found.insert(0, piece)
            size = rest
            continue
        high = piece.size.divide(size)
        if high is None:
            return None
        above = ONE if piece.source is None else piece.stride * size
        pieces.append(Piece(high, piece.kind, piece.source, above))
        found.insert(0, Piece(size, piece.kind, piece.source, piece.stride))
        size = ONE
    return merged(found)


def merged(pieces: Sequence[Piece]) -> Axis:
    """Return the axis of pieces, slow to fast; neighbours that are adjacent in their source become one."""
    found: list[Piece] = []
    for piece in pieces:
        if found and _adjacent(found[-1], piece):
            found[-1] = replace(piece, size=found[-1].size * piece.size)
        else:
            found.append(piece)
    return tuple(found)


def _adjacent(high: Piece, low: Piece) -> bool:
    if high.parts or low.parts or (high.kind, high.source) != (low.kind, low.source):
        return False
    return high.source is None or high.stride == low.stride * low.size
