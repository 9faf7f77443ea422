"""Tables of tiles along axes, combined to indices and masks over a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rewriter.kernels.window.axes import AxisTiles
from rewriter.lower.emitter import Emitter, Handle

__all__ = ["axes_mask", "hide", "on_grid", "places"]


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
    ones = [1] * len(tiles)
    for axis, t in enumerate(tiles):
        rows, columns, count = list(ones), list(ones), list(ones)
        count[axis], rows[axis], columns[axis] = t.count, t.low.shape[1], t.reach
        keys = e.constant(t.keys.reshape([*count, *ones, *columns]), "int64")
        low, high = (e.constant(x.reshape([*count, *rows, *ones]), "int64") for x in (t.low, t.high))
        seen = e.map("and", e.map("ge", keys, low), e.map("le", keys, high))
        mask = hide(e, seen, dtype)
        total = mask if total is None else e.map("add", total, mask)
    count, rows, columns = (
        math.prod(n) for n in zip(*((t.count, t.low.shape[1], t.reach) for t in tiles), strict=True)
    )
    return e.reshape(total, (count, 1, rows, columns))


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
