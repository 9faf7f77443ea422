"""A window along one axis of known size: what queries see, and tiles of them with the keys they need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from rewriter.kernels.window.tiles import GATHERING, price, price_of_all

__all__ = ["AxisTiles", "AxisWindow", "tile_axes", "totals"]

SIDES = {1: (32, 64, 128, 256), 2: (4, 8, 16), 3: (2, 4, 8)}
"""Lengths of tiles that are tried, by number of axes."""


@dataclass(frozen=True)
class AxisWindow:
    """What `rewriter.kernels.window.definition.axis_mask` says of one axis, as ranges of keys.

    Parameters
    ----------
    size
        Number of keys.
    window, stride, dilation, offset, moved, causal
        As there; ``moved`` is borders ``"shift"``.
    queries
        Number of queries; None is as many as keys.
    start
        Position of the first query.
    left, right
        How far the site itself lets a query see; None is everything.
    hidden
        Keys before this one are left out: they are seen otherwise.
    """

    size: int
    window: int
    stride: int = 1
    dilation: int = 1
    offset: int = 0
    moved: bool = False
    causal: bool = False
    queries: int | None = None
    start: int = 0
    left: int | None = None
    right: int | None = None
    hidden: int = 0

    @property
    def count(self) -> int:
        """Number of queries."""
        return self.size if self.queries is None else self.queries

    @property
    def positions(self) -> np.ndarray:
        """Positions of the queries among the keys."""
        return self.start + np.arange(self.count)

    def window_of(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first and the last key of the window of queries at positions ``at``.

        Both lie on the axis; in between, keys of the class of the query are seen. The first is behind the
        last where the window holds nothing.
        """
        rank, place = at // self.dilation, at % self.dilation
        first = (rank + self.offset) // self.stride * self.stride - self.offset
        if self.causal:
            low, high = first + self.stride - self.window, rank
        else:
            halo = -((self.stride - self.window) // 2)
            low, high = first - halo, first + self.stride - 1 + halo
            if self.moved:
                span, ranks = high - low, self._ranks(place)
                low = np.maximum(np.minimum(low, ranks - 1 - span), 0)
                high = low + span
        return (
            np.maximum(low, 0) * self.dilation + place,
            np.minimum(high, self._ranks(place) - 1) * self.dilation + place,
        )

    def seen(self, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first and the last key that queries see, by the window and by the site itself."""
        low, high = self.window_of(at)
        if self.left is not None:
            low = np.maximum(low, at - self.left)
        if self.right is not None:
            high = np.minimum(high, at + self.right)
        return np.maximum(low, self.hidden), high

    def contains(self, low: np.ndarray, high: np.ndarray, dilation: int = 1) -> bool:
        """Whether every query's window holds the keys ``low`` to ``high``, in steps of ``dilation``.

        That is, those of them that the site lets the query see.
        """
        if dilation % self.dilation and self.size > 1:
            return False
        at = self.positions
        first, last = self.window_of(at)
        low = np.maximum(low, 0 if self.left is None else np.maximum(at - self.left, 0))
        high = np.minimum(high, self.size - 1)
        high = high if self.right is None else np.minimum(high, at + self.right)
        # the ends need to be compared only as far as there are keys of the class between them
        return bool(((first < low + self.dilation) & (last > high - self.dilation) | (low > high)).all())

    @property
    def complete(self) -> bool:
        """Whether the window hides nothing that the site itself lets a query see."""
        return self.contains(np.zeros(self.count), np.full(self.count, self.size - 1))

    def tiles(self, length: int) -> AxisTiles:
        """Return tiles of ``length`` queries of one class and consecutive ranks, with the keys they see."""
        rows = self._rows(length)
        low, high = self.seen(rows)
        place = rows[:, :1] % self.dilation
        first = (np.maximum(low.min(1, keepdims=True), 0) - place) // self.dilation
        last = (high.max(1, keepdims=True) - place) // self.dilation
        reach = int(np.maximum(last - first, 0).max()) + 1
        first = np.maximum(np.minimum(first, self._ranks(place) - reach), 0)
        keys = (first + np.arange(reach)) * self.dilation + place
        return AxisTiles(rows - self.start, np.where(keys < self.size, keys, -1), low, high)

    def tile_of_many(self, length: int) -> tuple[int, int, np.ndarray]:
        """Return which keys a tile of ``length`` queries needs wherever it lies on a long axis.

        Borders do not move. Returns the rank of its first key, counted from that of its first query, the
        number of its keys, and which of them each query sees, ``[length, keys]``.
        """
        rank = np.arange(length)
        group = rank // self.stride * self.stride
        halo = -((self.stride - self.window) // 2)
        low = group + self.stride - self.window if self.causal else group - halo
        high = rank if self.causal else group + self.stride - 1 + halo
        if self.left is not None:
            low = np.maximum(low, rank - self.left // self.dilation)
        if self.right is not None:
            high = np.minimum(high, rank + self.right // self.dilation)
        first, last = int(low.min()), int(high.max())
        keys = np.arange(first, last + 1)
        return first, len(keys), (keys >= low[:, None]) & (keys <= high[:, None])

    def _rows(self, length: int) -> np.ndarray:
        """Return positions of queries by tile; the last ones of a class are repeated to fill its tile."""
        end, found = self.start + self.count - 1, []
        for place in range(min(self.dilation, self.size)):
            low, high = -(-(self.start - place) // self.dilation), (end - place) // self.dilation
            if low > high:
                continue
            begin = (low + self.offset) // self.stride * self.stride - self.offset
            ranks = np.arange(begin, high + 1, length)[:, None] + np.arange(length)
            found.append(np.clip(ranks, low, high) * self.dilation + place)
        return np.concatenate(found)

    def _ranks(self, place: np.ndarray) -> np.ndarray:
        """Return how many keys there are in the class of each."""
        return (self.size - place + self.dilation - 1) // self.dilation


@dataclass(frozen=True)
class AxisTiles:
    """Tiles of one axis.

    Parameters
    ----------
    queries
        Indices of queries ``[n, t]``.
    keys
        Positions of keys ``[n, k]``; -1 where a tile has fewer.
    low, high
        First and last key that each query sees, ``[n, t]``.
    """

    queries: np.ndarray
    keys: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self.keys)

    @property
    def length(self) -> int:
        """Queries per tile."""
        return int(self.queries.shape[1])

    @property
    def reach(self) -> int:
        """Keys per tile."""
        return int(self.keys.shape[1])

    @property
    def whole(self) -> bool:
        """Whether every query of a tile sees all of its keys."""
        keys = self.keys[:, None, :]
        return bool(((keys >= self.low[:, :, None]) & (keys <= self.high[:, :, None])).all())

    @property
    def everything(self) -> bool:
        """Whether it is one tile of as many queries as keys, in order and from the first."""
        one = self.count == 1 and self.queries.shape == self.keys.shape
        return one and all((x == np.arange(x.size)).all() for x in (self.queries, self.keys))

    def places(self) -> np.ndarray:
        """Return where each query is found among the tiles: ``[2, queries]``, tile and place in it."""
        flat = self.queries.ravel()
        at = np.empty(int(flat.max()) + 1, np.int64)
        at[flat[::-1]] = np.arange(flat.size)[::-1]
        return np.stack([at // self.length, at % self.length])


def tile_axes(axes: Sequence[AxisWindow], sinks: int) -> tuple[AxisTiles, ...]:
    """Return the tiles that cost least; one tile for everything where that does."""
    choices = [_choices(axis, SIDES[len(axes)]) for axis in axes]
    whole = tuple(axis.tiles(axis.count) for axis in axes if axis.dilation == 1)
    found = [tuple(tiles) for tiles in product(*choices)]
    if len(whole) == len(axes):
        found.append(whole)
    return min(found, key=lambda tiles: _price(tiles, sinks))


def _choices(axis: AxisWindow, sides: Sequence[int]) -> list[AxisTiles]:
    most = -(-axis.count // axis.dilation)
    groups = {max(1, min(side, most) // axis.stride) for side in sides}
    return [axis.tiles(n * axis.stride) for n in sorted(groups)]


def totals(tiles: Sequence[AxisTiles]) -> tuple[int, int, int]:
    """Return how many tiles there are along all axes, and how many queries and keys each has."""
    return (
        math.prod(t.count for t in tiles),
        math.prod(t.length for t in tiles),
        math.prod(t.reach for t in tiles),
    )


def _price(tiles: Sequence[AxisTiles], sinks: int) -> int:
    count, length, reach = totals(tiles)
    if all(t.everything for t in tiles):
        return price_of_all(length + sinks, reach + sinks)
    return price(count, length, reach + sinks) + GATHERING
