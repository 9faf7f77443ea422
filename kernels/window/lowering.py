"""How windows are emitted: tiles of queries, each with the keys that its window can reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rewriter.algebra.sizes import ONE, ZERO, Size
from rewriter.forms import Canonical
from rewriter.kernels.softmax.lowering import emit_dense
from rewriter.kernels.window.axes import AxisTiles
from rewriter.kernels.window.tiles import Tiles, attend_tiles, price, token_major
from rewriter.lower.band import emit_band
from rewriter.lower.emitter import Emitter, EmptyRow, Handle
from rewriter.sites.site import Band

__all__ = ["emit_axes", "emit_sliding", "tile_length"]


def emit_sliding(e: Emitter, a: Canonical, back: int, ahead: int, sinks: int, empty_row: EmptyRow) -> Handle:
    """Emit a window along one axis; ``[B, H, I, E]``.

    Query ``i`` at ``p = i + offset`` sees keys ``p - back … p + ahead`` and the first ``sinks``, as far
    as the site's own band lets it. Tiles cover ``T`` consecutive queries and the ``back + T + ahead`` keys
    around them, clamped at the ends (the mask hides what was clamped), so that lengths may be dynamic.
    """
    queries, keys, dtype = a.shape["I"], a.shape["J"], e.dtype(a.q)
    offset = a.band.offset if a.band is not None else ZERO
    if a.band is not None:
        back = back if a.band.left is None else min(back, a.band.left)
        ahead = ahead if a.band.right is None else min(ahead, a.band.right)
    length = tile_length(back + ahead, sinks, queries.known(), keys.known())
    if length is None:
        return _masked(e, a, back, ahead, sinks, empty_row)
    count = e.ceil_div(queries, length)
    first = e.map("mul", e.iota(count), e.constant(length, "int64"))

    # [N, K]: position of every key of every tile, of which those on the axis and behind the sinks are real
    start = e.map("add", first, e.size(offset - back)) if offset != Size.of(back) else first
    at = e.map("add", e.reshape(start, (count, ONE)), e.iota(back + length + ahead))
    real = e.map("lt", at, e.size(keys))
    if back or sinks:
        real = e.map("and", real, e.map("ge", at, e.constant(sinks, "int64")))
    near = Band(Size.of(back), back, ahead)
    mask = e.map(
        "add",
        e.reshape(_hide(e, real, dtype), (count, ONE, ONE, back + length + ahead)),
        emit_band(e, near, e.iota(length), e.iota(back + length + ahead), dtype),
    )
    index = e.map("minimum", e.map("maximum", at, e.constant(0, "int64")), e.size(keys - 1))
    rows = e.map("add", e.reshape(first, (count, ONE)), e.iota(length))
    if sinks:
        lead = e.iota(sinks)
        seen = _sink_mask(e, a, rows, lead, dtype)
        mask = e.concat([e.reshape(seen, (count, ONE, length, sinks)), mask], 3)
        lead = e.map("minimum", lead, e.size(keys - 1))
        index = e.concat([e.expand(lead, (count, sinks)), index], 1)

    padded = queries != count * length
    q = e.pad(a.q, 2, 0, count * length - queries) if padded else a.q
    if padded and length > back + 1 and not sinks and empty_row == "never":
        # a padded query may see nothing, and the gradient of a row of -inf is NaN
        empty_row = "zero"
    tiles = Tiles(
        queries=e.reshape(token_major(e, q), (a.shape["B"], count, length, a.shape["H"], a.shape["D"])),
        keys=index,
        mask=mask,
        rows=e.map("minimum", rows, e.size(queries - 1)) if padded else rows,
    )
    result = attend_tiles(e, a, tiles, empty_row)
    result = token_major(e, e.reshape(result, (a.shape["B"], count * length, a.shape["H"], a.shape["E"])))
    if sinks and not (a.band is not None and a.band.causal):
        head = _first_queries(e, replace(a, q=q), sinks, empty_row)
        result = e.concat([head, e.slice(result, 2, sinks, count * length - sinks)], 2)
    return e.slice(result, 2, 0, queries) if padded else result


def emit_axes(
    e: Emitter,
    a: Canonical,
    tiles: Sequence[AxisTiles],
    sizes: Sequence[int],
    sinks: int,
    empty_row: EmptyRow,
) -> Handle:
    """Emit a window along axes of known sizes; ``[B, H, I, E]``.

    On several axes the row-major tokens of the grid follow the sinks. On one axis the sinks are its first
    tokens; tiles of it leave them out.
    """
    origin = sinks if len(sizes) > 1 else 0
    count, length = math.prod(t.count for t in tiles), math.prod(t.length for t in tiles)
    index = _on_grid(e, [np.maximum(t.keys, 0) for t in tiles], sizes, origin)
    rows = _on_grid(e, [t.queries for t in tiles], sizes, origin)
    mask = _axes_mask(e, tiles, e.dtype(a.q), a.band is not None)
    if sinks:
        lead = e.iota(sinks)
        mask = _beside_sinks(e, a, mask, rows, lead)
        index = e.concat([e.expand(lead, (count, sinks)), index], 1)

    batch, heads = a.shape["B"], a.shape["H"]
    q = e.gather(token_major(e, a.q), e.reshape(rows, (count * length,)), 1)
    q = e.reshape(q, (batch, count, length, heads, a.shape["D"]))
    result = attend_tiles(e, a, Tiles(q, index, mask, rows), empty_row)
    result = e.reshape(result, (batch, count * length, heads, a.shape["E"]))
    places = _places(e, tiles)
    if sinks and not (a.band is not None and a.band.causal):
        head = token_major(e, _first_queries(e, a, sinks, empty_row))
        result = e.concat([head, result], 1)
        places = e.map("add", places, e.constant(sinks, "int64"))
        kept = places if origin else e.slice(places, 0, sinks, math.prod(sizes) - sinks)
        places = e.concat([e.iota(sinks), kept], 0)
    return token_major(e, e.gather(result, places, 1))


def _on_grid(e: Emitter, coordinates: Sequence[np.ndarray], sizes: Sequence[int], origin: int) -> Handle:
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


def _axes_mask(e: Emitter, tiles: Sequence[AxisTiles], dtype: str, masked: bool) -> Handle | None:
    """Emit 0 for each key that a query of the same tile sees along every axis, else -inf: ``[N, 1, T, K]``.

    None if every query sees all keys of its tile, unless ``masked``.
    """
    if not masked and all(t.whole for t in tiles):
        return None
    total: Handle | None = None
    ones = [1] * len(tiles)
    for axis, t in enumerate(tiles):
        rows, columns, count = list(ones), list(ones), list(ones)
        count[axis], rows[axis], columns[axis] = t.count, t.length, t.reach
        keys = e.constant(t.keys.reshape([*count, *ones, *columns]), "int64")
        low, high = (e.constant(x.reshape([*count, *rows, *ones]), "int64") for x in (t.low, t.high))
        seen = e.map("and", e.map("ge", keys, low), e.map("le", keys, high))
        mask = _hide(e, seen, dtype)
        total = mask if total is None else e.map("add", total, mask)
    shape = [math.prod(getattr(t, name) for t in tiles) for name in ("count", "length", "reach")]
    return e.reshape(total, (shape[0], 1, *shape[1:]))


def _places(e: Emitter, tiles: Sequence[AxisTiles]) -> Handle:
    """Emit where each token is found in the queries of all tiles, ``[∏ size]``."""
    parts, tile_step, place_step = [], 1, 1
    length = math.prod(t.length for t in tiles)
    for t in reversed(tiles):
        tile, place = t.places()
        parts.append((tile * tile_step * length + place * place_step)[:, None])
        tile_step, place_step = tile_step * t.count, place_step * t.length
    found = _combined(e, parts[::-1], "int64")
    return e.reshape(found, (e.shape(found)[0],))


def tile_length(reach: int, sinks: int, queries: int | None, keys: int | None) -> int | None:
    """Return how many queries share one gather of keys, or None where a mask over all keys costs less.

    ``reach`` is how many keys besides its own a query sees. Long tiles waste scores on keys outside of the
    window, short ones pay a fixed price each.
    """
    best = min((32, 64, 128, 256), key=lambda t: price(1, t, t + reach + sinks) / t)
    best = max(best, sinks)
    if queries is None or keys is None:
        return best
    best = min(best, queries)
    tiled = price(-(-queries // best), best, best + reach + sinks)
    return best if tiled < price(1, queries, keys) else None


def _hide(e: Emitter, seen: Handle, dtype: str) -> Handle:
    return e.map("where", seen, e.constant(0.0, dtype), e.constant(-math.inf, dtype))


def _masked(e: Emitter, a: Canonical, back: int, ahead: int, sinks: int, empty_row: EmptyRow) -> Handle:
    """Emit a window as a mask over all scores; ``[B, H, I, E]``."""
    queries, keys, dtype = a.shape["I"], a.shape["J"], e.dtype(a.q)
    offset = a.band.offset if a.band is not None else ZERO
    rows, columns = e.iota(queries), e.iota(keys)
    mask = emit_band(e, Band(offset, back, ahead), rows, columns, dtype)
    if sinks:
        first = e.constant(sinks, "int64")
        at = e.map("add", rows, e.size(offset)) if offset != ZERO else rows
        kept = e.map("or", e.reshape(e.map("lt", at, first), (queries, ONE)), e.map("lt", columns, first))
        mask = e.map("where", kept, e.constant(0.0, dtype), mask)
    if a.band is not None:
        mask = e.map("add", mask, emit_band(e, a.band, rows, columns, dtype))
    mask = e.reshape(mask, (1, 1, queries, keys))
    bias = mask if a.bias is None else e.map("add", a.bias, mask)
    return emit_dense(e, replace(a, bias=bias, band=None), empty_row)


def _beside_sinks(e: Emitter, a: Canonical, mask: Handle | None, rows: Handle, lead: Handle) -> Handle | None:
    """Emit the mask of tiles with that of the sinks before it."""
    (sinks,), (count, length) = e.shape(lead), e.shape(rows)
    if a.band is None:
        return None if mask is None else e.pad(mask, 3, sinks, 0)
    shape = (count, ONE, length, sinks)
    first = e.reshape(_sink_mask(e, a, rows, lead, e.dtype(a.q)), shape)
    return e.concat([first, mask], 3)


def _sink_mask(e: Emitter, a: Canonical, rows: Handle, lead: Handle, dtype: str) -> Handle:
    """Emit what of the first tokens each query may see, ``[N, T, sinks]``."""
    shape = (*e.shape(rows), *e.shape(lead))
    if a.band is not None:
        mask = emit_band(e, a.band, rows, lead, dtype)
    else:
        mask = e.expand(e.constant(0.0, dtype), shape)
    if a.shape["J"].at_least(shape[-1]):
        return mask
    return e.map("add", mask, _hide(e, e.map("lt", lead, e.size(a.shape["J"])), dtype))


def _first_queries(e: Emitter, a: Canonical, count: int, empty_row: EmptyRow) -> Handle:
    """Emit attention of the first queries to every key that the site lets them see."""

    def first(x: Handle | None) -> Handle | None:
        if x is None or e.shape(x)[2] == ONE:
            return x
        return e.slice(x if a.shape["I"].at_least(count) else e.pad(x, 2, 0, count), 2, 0, count)

    shape = {**a.shape, "I": Size.of(count)}
    part = replace(a, q=e.slice(a.q, 2, 0, count), bias=first(a.bias), sink=first(a.sink), shape=shape)
    return emit_dense(e, part, empty_row)
