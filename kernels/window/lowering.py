"""How windows are emitted: tiles of queries, each with the keys that its window can reach."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from rewriter.algebra.sizes import ONE, ZERO, Size
from rewriter.forms import Canonical
from rewriter.kernels.softmax.lowering import emit_dense
from rewriter.kernels.window.tiles import Tiles, attend_tiles, price, token_major
from rewriter.lower.band import emit_band
from rewriter.lower.emitter import Emitter, EmptyRow, Handle
from rewriter.sites.site import Band

__all__ = ["emit_grid", "emit_sliding", "grid_tile", "tile_length"]


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


def emit_grid(
    e: Emitter, a: Canonical, half: int, grid: tuple[int, int], sinks: int, empty_row: EmptyRow
) -> Handle:
    """Emit a square window on a grid of tokens that follow the sinks; ``[B, H, I, E]``.

    Tiles cover ``t × u`` queries and the ``(t + 2·half) × (u + 2·half)`` keys around them, moved inwards at
    the edges of the grid.
    """
    dtype, batch, heads = e.dtype(a.q), a.shape["B"], a.shape["H"]
    high, wide = grid
    tall, broad = grid_tile(grid, half, sinks)
    y, x = _axis(high, tall, half), _axis(wide, broad, half)
    down, across = len(y.keys), len(x.keys)
    count, length, reach = down * across, tall * broad, y.keys.shape[1] * x.keys.shape[1]

    def pair(rows: np.ndarray, columns: np.ndarray, step: int, kind: str) -> Handle:
        """``rows * step + columns`` for every tile: ``[N, …]`` from ``[ny, …]`` and ``[nx, …]``."""
        r = rows.reshape(down, 1, *(n for m in rows.shape[1:] for n in (m, 1))) * step
        c = columns.reshape(1, across, *(n for m in columns.shape[1:] for n in (1, m)))
        shape = (count, *(m * n for m, n in zip(rows.shape[1:], columns.shape[1:], strict=True)))
        return e.reshape(e.map("add", e.constant(r, kind), e.constant(c, kind)), shape)

    index = pair(y.keys, x.keys, wide, "int64")
    mask = e.reshape(pair(y.mask, x.mask, 1, dtype), (count, 1, length, reach))
    rows = pair(y.queries, x.queries, wide, "int64")
    if sinks:
        index = e.map("add", index, e.constant(sinks, "int64"))
        rows = e.map("add", rows, e.constant(sinks, "int64"))
        index = e.concat([e.expand(e.iota(sinks), (count, sinks)), index], 1)
        mask = e.pad(mask, 3, sinks, 0)

    body = token_major(e, e.slice(a.q, 2, sinks, high * wide) if sinks else a.q)
    body = e.reshape(body, (batch, high, wide, heads, a.shape["D"]))
    body = _pad(e, _pad(e, body, 1, down * tall - high), 2, across * broad - wide)
    body = e.reshape(body, (batch, down, tall, across, broad, heads, a.shape["D"]))
    body = e.permute(body, (0, 1, 3, 2, 4, 5, 6))
    padded = (down * tall, across * broad) != grid
    if padded and max(tall, broad) > half + 1 and not sinks and empty_row == "never":
        empty_row = "zero"
    q = e.reshape(body, (batch, count, length, heads, a.shape["D"]))
    result = attend_tiles(e, a, Tiles(q, index, mask, rows), empty_row)
    result = e.reshape(result, (batch, down, across, tall, broad, heads, a.shape["E"]))
    result = e.reshape(
        e.permute(result, (0, 1, 3, 2, 4, 5, 6)), (batch, down * tall, across * broad, heads, a.shape["E"])
    )
    if padded:
        result = e.slice(e.slice(result, 1, 0, high), 2, 0, wide)
    result = token_major(e, e.reshape(result, (batch, high * wide, heads, a.shape["E"])))
    return e.concat([_first_queries(e, a, sinks, empty_row), result], 2) if sinks else result


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


def grid_tile(grid: tuple[int, int], half: int, sinks: int) -> tuple[int, int]:
    """Return the best tile, in rows and columns; the whole grid where a mask over all keys costs less."""

    def total(tile: tuple[int, int]) -> int:
        count = math.prod(-(-size // length) for size, length in zip(grid, tile, strict=True))
        keys = math.prod(min(size, length + 2 * half) for size, length in zip(grid, tile, strict=True))
        return price(count, math.prod(tile), keys + sinks)

    sides = (4, 8, 16)
    tiles = [(min(t, grid[0]), min(u, grid[1])) for t in sides for u in sides]
    return min([*tiles, grid], key=total)


@dataclass(frozen=True)
class _Axis:
    """Tiles of one axis of a grid: index of queries ``[n, t]`` and keys ``[n, k]``, mask ``[n, t, k]``."""

    queries: np.ndarray
    keys: np.ndarray
    mask: np.ndarray


def _axis(size: int, length: int, half: int) -> _Axis:
    reach = min(size, length + 2 * half)
    first = np.arange(0, size, length)
    queries = first[:, None] + np.arange(length)
    keys = np.clip(first - half, 0, size - reach)[:, None] + np.arange(reach)
    near = np.abs(keys[:, None, :] - queries[:, :, None]) <= half
    return _Axis(np.minimum(queries, size - 1), keys, np.where(near, 0.0, -np.inf))


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


def _pad(e: Emitter, x: Handle, axis: int, after: int) -> Handle:
    return e.pad(x, axis, 0, after) if after else x
