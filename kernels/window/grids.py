"""Tables of tiles along axes, combined to indices and masks over a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rewriter.kernels.window.axes import AxisTiles
from rewriter.lower.emitter import Emitter, Handle

__all__ = ["axes_mask", "hide", "on_grid", "places"]

SMALL = 1 << 14
"""Numbers of a mask along one axis that is kept; a larger one is made of the ends of windows when it runs."""


def on_grid(e: Emitter, coordinates: Sequence[np.ndarray], sizes: Sequence[int], origin: int) -> Handle:
    """Emit row-major positions ``[N, …]`` of coordinates ``[n, …]`` on each axis, all combined."""
    steps = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
    total = _combined(e, [x * step for x, step in zip(coordinates, steps, strict=True)], "int64")
    return e.map("add", total, e.constant(origin, "int64")) if origin else total


def _combined(e: Emitter, parts: Sequence[np.ndarray | Handle], dtype: str) -> Handle:
    """Emit the sum of one entry of each part for all combinations: ``[∏ n, ∏ m]`` from ``[n, m]`` each."""
    total: Handle | None = None
    for axis, part in enumerate(parts):
        shape = [1] * len(parts)
        shape[axis] = part.shape[0]
        inner = [1] * len(parts)
        inner[axis] = part.shape[1]
        known = e.constant(part.reshape([*shape, *inner]), dtype)
        total = known if total is None else e.map("add", total, known)
    rows, columns = (math.prod(part.shape[k] for part in parts) for k in (0, 1))
    return e.reshape(total, (rows, columns))


def axes_mask(e: Emitter, tiles: Sequence[AxisTiles], dtype: str, masked: bool) -> Handle | None:
    """Emit 0 for each key that a query of the same tile sees along every axis, else -inf: ``[N, 1, T, K]``.

    None if every query sees all keys of its tile, unless ``masked``.
    """
    if not masked and all(t.whole for t in tiles):
        return None
    total: Handle | None = None
    for axis, t in enumerate(tiles):
        mask = _axis_mask(e, t, dtype, axis, len(tiles))
        total = mask if total is None else e.map("add", total, mask)
    count, rows, columns = (
        math.prod(n) for n in zip(*((t.count, t.low.shape[1], t.reach) for t in tiles), strict=True)
    )
    return e.reshape(total, (count, 1, rows, columns))


def _axis_mask(e: Emitter, t: AxisTiles, dtype: str, axis: int, axes: int) -> Handle:
    """Emit the mask along one of several axes: a count, queries and keys for each of them."""
    rows, columns, count = [1] * axes, [1] * axes, [1] * axes
    ones = [1] * axes
    count[axis], rows[axis], columns[axis] = t.count, t.low.shape[1], t.reach
    keys = t.keys.reshape([*count, *ones, *columns])
    low, high = (x.reshape([*count, *rows, *ones]) for x in (t.low, t.high))
    if t.count * t.low.shape[1] * t.reach <= SMALL:
        return e.constant(np.where((keys >= low) & (keys <= high), 0.0, -math.inf), dtype)
    at, first, last = (e.constant(x, "int64") for x in (keys, low, high))
    return hide(e, e.map("and", e.map("ge", at, first), e.map("le", at, last)), dtype)


def places(e: Emitter, tiles: Sequence[AxisTiles]) -> Handle:
    """Emit where each token is found in the queries of all tiles, ``[∏ size]``."""
    parts, tile_step, place_step = [], 1, 1
    length = math.prod(t.length for t in tiles)
    for t in reversed(tiles):
        tile, place = t.places()
        parts.append((tile * tile_step * length + place * place_step)[:, None])
        tile_step, place_step = tile_step * t.count, place_step * t.length
    found = _combined(e, parts[::-1], "int64")
    return e.reshape(found, (e.shape(found)[0],))


def hide(e: Emitter, seen: Handle, dtype: str) -> Handle:
    """Emit 0 where a key is seen, else -inf."""
    return e.map("where", seen, e.constant(0.0, dtype), e.constant(-math.inf, dtype))
