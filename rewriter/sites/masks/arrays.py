"""Facts from a mask that is known in full, ``[queries, keys]``: a shape counts if it gives every entry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import gcd, prod

import numpy as np

from rewriter.algebra.sizes import Size
from rewriter.sites.masks.proof import Proof, band_of
from rewriter.sites.patterns import Blocks, GridAxis, Neighbourhood, Prefix, Segments, Stride

__all__ = ["shape_of", "shape_of_all"]

_UNKNOWN = Proof(unknown=True)


def shape_of(visible: np.ndarray) -> Proof:
    """Return what a mask is, ``unknown`` if it is nothing that has a name."""
    seen = bool(visible.any(axis=1).all())
    if visible.all():
        return Proof(seen=seen)
    if not visible.any():
        return replace(_UNKNOWN, seen=False)
    for find in (_band, _padding, _prefix, _segments, _neighbourhood):
        found = find(visible)
        if found is not None:
            return replace(found, seen=seen)
    return replace(_UNKNOWN, seen=seen)


def shape_of_all(visible: np.ndarray) -> Proof:
    """Return what masks ``[batch, queries, keys]`` are that may differ from one element to the next."""
    seen = bool(visible.any(axis=2).all())
    if (visible == visible[:1]).all():
        return replace(shape_of(visible[0]), seen=seen)
    keys, queries = visible.any(axis=1, keepdims=True), visible.any(axis=2, keepdims=True)
    if np.array_equal(visible, keys & queries):
        found = Proof(hides_keys=not keys.all(), hides_queries=not queries.all())
        return replace(found, seen=seen)
    if all(np.array_equal(m, _same(*_components(m))) for m in visible):
        return Proof(segments=Segments(), seen=seen)
    return replace(_UNKNOWN, seen=seen)


def _ahead(visible: np.ndarray) -> np.ndarray:
    rows, columns = visible.shape
    return np.arange(columns, dtype=np.int32)[None, :] - np.arange(rows, dtype=np.int32)[:, None]


def _within(ahead: np.ndarray, lower: int | None, upper: int | None) -> np.ndarray:
    inside = np.ones(ahead.shape, np.bool_)
    if lower is not None:
        inside &= ahead >= lower
    if upper is not None:
        inside &= ahead <= upper
    return inside


def _limits(visible: np.ndarray, ahead: np.ndarray) -> Iterator[tuple[int | None, int | None]]:
    """Yield limits on ``key - query`` that the mask keeps, loose ones first."""
    lower, upper = int(ahead[visible].min()), int(ahead[visible].max())
    yield None, None
    yield None, upper
    yield lower, None
    yield lower, upper


def _limited(lower: int | None, upper: int | None) -> Proof:
    return Proof(
        lower=None if lower is None else Size.of(lower), upper=None if upper is None else Size.of(upper)
    )


def _band(visible: np.ndarray) -> Proof | None:
    ahead = _ahead(visible)
    for lower, upper in _limits(visible, ahead):
        if np.array_equal(visible, _within(ahead, lower, upper)):
            # one query that sees the keys from some place on: that is padding
            alone = visible.shape[0] == 1 and upper is None
            return None if alone and lower is not None and lower > 0 else _limited(lower, upper)
    return None


def _padding(visible: np.ndarray) -> Proof | None:
    """A band in which some keys are hidden from everyone, or some queries see nothing."""
    keys, queries = np.asarray(visible.any(axis=0)), np.asarray(visible.any(axis=1))
    ahead = _ahead(visible)
    for lower, upper in _limits(visible, ahead):
        inside = _within(ahead, lower, upper)
        for by_query in (False, True):
            shown = inside & keys[None, :]
            if by_query:
                shown &= queries[:, None]
            if np.array_equal(visible, shown):
                hides_keys = not np.array_equal(inside & queries[:, None] if by_query else inside, shown)
                hides_queries = by_query and not np.array_equal(inside & keys[None, :], shown)
                return replace(_limited(lower, upper), hides_keys=hides_keys, hides_queries=hides_queries)
    return None


def _prefix(visible: np.ndarray) -> Proof | None:
    whole = np.asarray(visible.all(axis=0))
    length = len(whole) if whole.all() else int(np.argmin(whole))
    rest = visible[:, length:]
    if not length or not rest.any():
        return None
    ahead = _ahead(visible)
    for lower, upper in _limits(rest, ahead[:, length:]):
        shown = _within(ahead, lower, upper)
        shown[:, :length] = True
        band = band_of(*(None if n is None else Size.of(n) for n in (lower, upper)))
        if band is not None and np.array_equal(visible, shown):
            return Proof(prefix=Prefix(Size.of(length), band))
    return None


# segments


def _segments(visible: np.ndarray) -> Proof | None:
    """Within a band, keys are seen by the queries of their own segment."""
    queries, keys = _components(visible)
    same = _same(queries, keys)
    ahead = _ahead(visible)
    for lower, upper in _limits(visible, ahead):
        if np.array_equal(visible, same & _within(ahead, lower, upper)):
            found = _of_ids(queries, keys)
            return replace(found, lower=_limited(lower, upper).lower, upper=_limited(lower, upper).upper)
    return None


def _components(visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ids of queries and keys: equal where a chain of visible pairs leads from one to the other."""
    rows, columns = visible.shape
    none = rows + columns
    keys = np.arange(columns, dtype=np.int32)
    while True:
        queries = np.where(visible, keys[None, :], none).min(axis=1, initial=none).astype(np.int32)
        joined = np.where(visible, queries[:, None], none).min(axis=0, initial=none).astype(np.int32)
        joined = np.minimum(joined, keys)
        # an id is the first key of its segment: follow it to the first key of that one's
        joined = joined[joined]
        if np.array_equal(joined, keys):
            break
        keys = joined
    blind = queries == none
    queries[blind] = columns + np.flatnonzero(blind).astype(np.int32)
    return queries, keys


def _same(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    return np.asarray(queries[:, None] == keys[None, :])


def _of_ids(queries: np.ndarray, keys: np.ndarray) -> Proof:
    """Name segments: blocks of one size, residues, or others."""
    if not np.array_equal(queries, keys):
        return Proof(segments=Segments(), own=False)
    changes = np.flatnonzero(np.diff(keys)) + 1
    starts = [0, *changes.tolist()]
    lengths = [b - a for a, b in zip(starts, [*starts[1:], len(keys)], strict=True)]
    if len(np.unique(keys)) == len(starts):
        size = lengths[0]
        if all(n == size for n in lengths[:-1]) and lengths[-1] <= size:
            return Proof(blocks=Blocks(Size.of(size)))
        return Proof(segments=Segments(lengths=tuple(lengths)))
    step = int(keys.max()) + 1
    if np.array_equal(keys, np.arange(len(keys)) % step):
        return Proof(stride=Stride(Size.of(step)))
    return Proof(segments=Segments())


# neighbourhoods


MOST_GRIDS = 256
"""Grids that are tried for one mask."""


def _neighbourhood(visible: np.ndarray) -> Proof | None:
    rows, columns = visible.shape
    if rows != columns:
        return None
    for _, grid in zip(range(MOST_GRIDS), _grids(rows), strict=False):
        if all(_is_box(visible[at].reshape(grid)) for at in (0, rows // 2, rows // 3, rows - 1)):
            axes = _on_grid(visible, grid)
            if axes is not None and any(a.bounded for a in axes):
                return Proof(neighbourhood=Neighbourhood(axes))
    return None


def _grids(count: int) -> Iterator[tuple[int, ...]]:
    yield (count,)
    divisors = [n for n in range(2, count) if count % n == 0]
    for n in divisors:
        yield count // n, n
    for n in divisors:
        for m in divisors:
            if count % (n * m) == 0 and count // (n * m) > 1:
                yield count // (n * m), m, n


def _is_box(row: np.ndarray) -> bool:
    """Whether the entries of one row are a product of sets of coordinates."""
    return bool(row.any()) and row.sum() == prod(p.sum() for p in _projections(row))


def _projections(block: np.ndarray) -> list[np.ndarray]:
    axes = range(block.ndim)
    return [np.asarray(block.any(axis=tuple(k for k in axes if k != axis))) for axis in axes]


def _on_grid(visible: np.ndarray, grid: tuple[int, ...]) -> tuple[GridAxis, ...] | None:
    rank = len(grid)
    spread = visible.reshape(*grid, *grid)
    axes: list[GridAxis] = []
    shown = np.ones((1,) * (2 * rank), np.bool_)
    for k, n in enumerate(grid):
        others = tuple(a for a in range(2 * rank) if a not in (k, k + rank))
        window = np.asarray(spread.any(axis=others))
        axis = _axis(window)
        if axis is None:
            return None
        axes.append(axis)
        shape = [1] * (2 * rank)
        shape[k] = shape[k + rank] = n
        shown = shown & window.reshape(shape)
    return tuple(axes) if np.array_equal(spread, np.broadcast_to(shown, spread.shape)) else None


def _axis(window: np.ndarray) -> GridAxis | None:
    """Return what ``[from, to]`` along one axis is."""
    n = len(window)
    if window.all():
        return GridAxis(Size.of(n))
    if not window.any(axis=1).all():
        return None
    ahead = _ahead(window)
    offsets = np.unique(ahead[window])
    dilation = gcd(*(int(d) for d in offsets)) or 1
    lower, upper = int(offsets[0]), int(offsets[-1])
    if np.array_equal(window, _within(ahead, lower, upper) & (ahead % dilation == 0)):
        # as far as the axis goes is as far as it can
        left, right = (None if m > n - 1 - dilation else m for m in (-lower, upper))
        return GridAxis(Size.of(n), left, right, dilation=dilation)
    return _clamped(window, dilation)


def _clamped(window: np.ndarray, dilation: int) -> GridAxis | None:
    n = len(window)
    first = window.argmax(axis=1)
    width = int(window[0].sum())
    moved = np.flatnonzero(first[::dilation] > 0)
    if not len(moved):
        return None
    left = int(moved[0]) - 1
    axis = GridAxis(Size.of(n), left * dilation, (width - 1 - left) * dilation, True, dilation)
    return axis if left < width and np.array_equal(window, _window(n, width, left, dilation)) else None


def _window(n: int, width: int, left: int, dilation: int) -> np.ndarray:
    at = np.arange(n)
    place, phase = at // dilation, at % dilation
    length = (n - phase + dilation - 1) // dilation
    start = np.clip(place - left, 0, np.maximum(length - width, 0))
    inside = (place[None, :] >= start[:, None]) & (place[None, :] < start[:, None] + width)
    return np.asarray(inside & (phase[None, :] == phase[:, None]))
