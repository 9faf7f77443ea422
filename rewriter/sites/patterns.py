"""Shapes of masks: what a proved fact says, exactly, of which key a query may see."""

from __future__ import annotations

from dataclasses import dataclass

from rewriter.algebra.sizes import ZERO, Size
from rewriter.algebra.term import Term

__all__ = ["Band", "Blocks", "GridAxis", "Neighbourhood", "Prefix", "Segments", "Stride"]


@dataclass(frozen=True, slots=True)
class Band:
    """Key ``j`` is visible to query ``i`` iff ``-left <= j - (i + offset) <= right``; None is unbounded.

    Causal attention is ``Band(offset=0, left=None, right=0)``; a causal window of ``w`` keys (the
    query's own included) is ``Band(0, w - 1, 0)``.
    """

    offset: Size
    left: int | None
    right: int | None

    @property
    def causal(self) -> bool:
        """Whether no query sees a key after its own position."""
        return self.right == 0


@dataclass(frozen=True, slots=True)
class Blocks:
    """Key ``j`` is visible to query ``i`` only if ``(j + keys) // size == (i + queries) // size``."""

    size: Size
    queries: Size = ZERO
    keys: Size = ZERO


@dataclass(frozen=True, slots=True)
class Stride:
    """Key ``j`` is visible to query ``i`` only if ``j - i - offset`` is a multiple of ``step``."""

    step: Size
    offset: Size = ZERO


@dataclass(frozen=True, slots=True)
class Segments:
    """A key is visible only to queries that have the same segment id.

    Parameters
    ----------
    queries, keys
        The ids, as functions of batch and query, and of batch and key; None when only the whole mask
        is in the graph.
    lengths
        Numbers of positions per segment, when they are known, the same for queries and keys and for the
        whole batch, and every segment is one run; else None.
    """

    queries: Term | None = None
    keys: Term | None = None
    lengths: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Prefix:
    """Key ``j`` is visible to query ``i`` only if ``j < length``, or if ``band`` lets it be.

    Parameters
    ----------
    length
        How many keys; None when a tensor of the graph says so.
    band
        What holds for the other keys.
    source
        The length as a function of the batch, when it is no size.
    """

    length: Size | None
    band: Band
    source: Term | None = None


@dataclass(frozen=True, slots=True)
class GridAxis:
    """Which coordinates ``y`` of keys a query at ``x`` may see along one axis of a grid.

    Parameters
    ----------
    size
        Length of the axis; None if it is not known (only the first axis).
    left, right
        ``-left <= y - x <= right``; both None is unbounded.
    clamped
        The window is moved to stay inside of the axis, so that it has ``left + right + 1`` entries at the
        borders too.
    dilation
        ``y - x`` is a multiple of it; a clamped window then moves by multiples of it.
    """

    size: Size | None
    left: int | None = None
    right: int | None = None
    clamped: bool = False
    dilation: int = 1

    @property
    def bounded(self) -> bool:
        """Whether anything is hidden along this axis."""
        return self.left is not None or self.right is not None or self.dilation > 1


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """A key is visible only if every axis of a grid allows it; positions are row-major in the grid."""

    axes: tuple[GridAxis, ...]

    @property
    def grid(self) -> tuple[Size | None, ...]:
        """Sizes of the axes."""
        return tuple(a.size for a in self.axes)
