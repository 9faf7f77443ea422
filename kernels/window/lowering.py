"""How windows are emitted: tiles of queries, each with the keys that its window can reach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rewriter.algebra.sizes import ONE, ZERO, Size
from rewriter.forms import Canonical
from rewriter.kernels.softmax.lowering import emit_dense
from rewriter.kernels.window.axes import AxisTiles, AxisWindow
from rewriter.kernels.window.grids import axes_mask, hide, on_grid, places
from rewriter.kernels.window.tiles import Tiles, attend_parts, attend_tiles, price, token_major
from rewriter.lower.attention import capped_and_masked
from rewriter.lower.band import emit_band
from rewriter.lower.emitter import Emitter, EmptyRow, Handle
from rewriter.sites.site import Band

__all__ = ["attend_axes", "emit_axes", "emit_groups", "emit_sliding", "first_queries", "tile_length"]


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
    if (found := _by_one_operator(e, a, back, ahead, sinks)) is not None:
        return found
    length = tile_length(back + ahead, sinks, queries.known(), keys.known())
    if length is None:
        return _masked(e, a, back, ahead, sinks, empty_row)
    count = e.ceil_div(queries, length)
    first = e.map("mul", e.iota(count), e.constant(length, "int64"))

    start = e.map("add", first, e.size(offset - back)) if offset != Size.of(back) else first
    index, mask = (_around if keys.static else _within)(e, a, start, (back, length, ahead), sinks)
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
        head = first_queries(e, replace(a, q=q), sinks, empty_row)
        result = e.concat([head, e.slice(result, 2, sinks, count * length - sinks)], 2)
    return e.slice(result, 2, 0, queries) if padded else result


def _around(
    e: Emitter, a: Canonical, start: Handle, extent: tuple[int, int, int], sinks: int
) -> tuple[Handle, Handle]:
    """Emit the keys of tiles ``[N, K]``, clamped at the ends, and the mask ``[N, 1, T, K]`` of the rest.

    Parameters
    ----------
    e, a
        Target and operands.
    start
        Where the keys of a tile begin, ``[N]``: before key 0, maybe.
    extent
        How many keys stand before the queries of a tile, how many these are, and how many keys behind.
    sinks
        First keys that the mask hides: they are read apart.
    """
    (count,), keys, dtype = e.shape(start), a.shape["J"], e.dtype(a.q)
    back, length, ahead = extent
    at = e.map("add", e.reshape(start, (count, ONE)), e.iota(back + length + ahead))
    real = e.map("lt", at, e.size(keys))
    if back or sinks:
        real = e.map("and", real, e.map("ge", at, e.constant(sinks, "int64")))
    mask = e.map(
        "add",
        e.reshape(hide(e, real, dtype), (count, ONE, ONE, back + length + ahead)),
        emit_band(e, Band(Size.of(back), back, ahead), e.iota(length), e.iota(back + length + ahead), dtype),
    )
    return e.map("minimum", e.map("maximum", at, e.constant(0, "int64")), e.size(keys - 1)), mask


def _within(
    e: Emitter, a: Canonical, start: Handle, extent: tuple[int, int, int], sinks: int
) -> tuple[Handle, Handle]:
    """Emit the same as `_around` where a tile may reach further than there are keys: it reads all of them."""
    (count,), keys = e.shape(start), a.shape["J"]
    back, length, ahead = extent
    many = e.least(keys, back + length + ahead)
    moved = e.map("minimum", e.map("maximum", start, e.constant(0, "int64")), e.size(keys - many))
    at = e.map("add", e.reshape(moved, (count, ONE)), e.iota(many))
    # how far a key lies behind the first that a query sees
    behind = e.reshape(e.map("sub", at, e.reshape(start, (count, ONE))), (count, ONE, ONE, many))
    behind = e.map("sub", behind, e.reshape(e.iota(length), (length, ONE)))
    seen = e.map("le", behind, e.constant(back + ahead, "int64"))
    seen = e.map("and", seen, e.map("ge", behind, e.constant(0, "int64")))
    if sinks:
        own = e.map("ge", at, e.constant(sinks, "int64"))
        seen = e.map("and", seen, e.reshape(own, (count, ONE, ONE, many)))
    return at, hide(e, seen, e.dtype(a.q))


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
    if a.band is None and all(t.everything for t in tiles):
        return _masked_axes(e, a, tiles, sinks, empty_row)
    origin = sinks if len(sizes) > 1 else 0
    index = on_grid(e, [np.maximum(t.keys, 0) for t in tiles], sizes, origin)
    rows = on_grid(e, [t.queries for t in tiles], sizes, origin)
    mask = axes_mask(e, tiles, e.dtype(a.q), a.band is not None)
    if sinks:
        lead = e.iota(sinks)
        mask = _beside_sinks(e, a, mask, rows, lead)
        index = e.concat([e.expand(lead, (e.shape(index)[0], sinks)), index], 1)
    found = Tiles(rows, index, mask, rows)
    return attend_axes(e, a, a, places(e, tiles), found, sinks, empty_row, before=len(sizes) > 1)


def _masked_axes(
    e: Emitter, a: Canonical, tiles: Sequence[AxisTiles], sinks: int, empty_row: EmptyRow
) -> Handle:
    """Emit one tile of everything: all scores with a mask, and nothing is gathered; ``[B, H, I, E]``."""
    mask = axes_mask(e, tiles, e.dtype(a.q), masked=True)
    if sinks:
        mask = e.pad(e.pad(mask, 2, sinks, 0), 3, sinks, 0)
    bias = mask if a.bias is None else e.map("add", a.bias, mask)
    return emit_dense(e, replace(a, bias=bias), empty_row)


def emit_groups(
    e: Emitter, a: Canonical, axis: AxisWindow, length: int, sinks: int, empty_row: EmptyRow
) -> Handle:
    """Emit a window with a stride or dilation along one axis of unknown length; ``[B, H, I, E]``.

    Parameters
    ----------
    e, a
        Target and operands: as many queries as keys, in the same places.
    axis
        The window; its ``size`` says nothing. Its borders do not move.
    length
        Queries per tile: a multiple of the stride.
    sinks, empty_row
        As in `emit_sliding`.
    """
    if not sinks and empty_row == "never":
        # a query that only fills a tile may see nothing, and the gradient of a row of -inf is NaN
        empty_row = "zero"
    if sinks and not a.shape["I"].at_least(sinks):
        a = replace(a, q=e.pad(a.q, 2, 0, sinks))
    keys, step = a.shape["J"], e.constant(axis.dilation, "int64")
    first, reach, seen = axis.tile_of_many(length)
    blocks = e.ceil_div(keys + axis.offset * axis.dilation, length * axis.dilation)
    count = blocks * axis.dilation
    start = e.map("mul", e.reshape(e.iota(blocks), (blocks, ONE, ONE)), e.constant(length, "int64"))
    start = e.map("sub", start, e.constant(axis.offset, "int64"))
    place = e.reshape(e.iota(axis.dilation), (ONE, axis.dilation, ONE))

    def positions(ranks: Handle, many: int) -> Handle:
        at = e.map("add", e.map("mul", e.map("add", start, ranks), step), place)
        return e.reshape(at, (count, many))

    rows = _inside(e, positions(e.iota(length), length), keys)
    at = positions(e.map("add", e.iota(reach), e.constant(first, "int64")), reach)
    real = e.map("and", e.map("lt", at, e.size(keys)), e.map("ge", at, e.constant(sinks, "int64")))
    mask = hide(e, e.reshape(real, (count, ONE, ONE, reach)), e.dtype(a.q))
    mask = e.map("add", mask, hide(e, e.constant(seen[None, None], "bool"), e.dtype(a.q)))
    index = _inside(e, at, keys)
    if sinks:
        lead = e.iota(sinks)
        seen_lead = e.reshape(_sink_mask(e, a, rows, lead, e.dtype(a.q)), (count, ONE, length, sinks))
        mask = e.concat([seen_lead, mask], 3)
        index = e.concat([e.expand(_inside(e, lead, keys), (count, sinks)), index], 1)
    ranks = e.map("add", e.map("floordiv", e.iota(keys), step), e.constant(axis.offset, "int64"))
    size = e.constant(length, "int64")
    tile = e.map("mul", e.map("floordiv", ranks, size), step)
    tile = e.map("add", tile, e.map("mod", e.iota(keys), step))
    found = e.map("add", e.map("mul", tile, size), e.map("mod", ranks, size))
    return attend_axes(e, a, a, found, Tiles(rows, index, mask, rows), sinks, empty_row)


def attend_axes(
    e: Emitter,
    a: Canonical,
    gathered: Canonical,
    found: Handle,
    tiles: Tiles,
    sinks: int,
    empty_row: EmptyRow,
    before: bool = False,
) -> Handle:
    """Emit attention of tiles, and of the first queries to all keys; ``[B, H, I, E]``.

    Parameters
    ----------
    e, a
        Target and operands.
    gathered
        The operands whose keys, values and bias the tiles read.
    found
        Where each query is among the rows of all tiles, ``[I]``; without the sinks if they stand ``before``.
    tiles
        As `Tiles`, but its queries are not gathered yet: they are the rows.
    sinks
        How many first queries see every key, unless the site is causal.
    empty_row
        As in `rewriter.lower.emitter.Emitter.attention`.
    before
        The sinks stand before the queries of the tiles.
    """
    batch, (count, length) = a.shape["B"], e.shape(tiles.rows)
    q = e.gather(token_major(e, a.q), e.reshape(tiles.rows, (count * length,)), 1)
    q = e.reshape(q, (batch, count, length, a.shape["H"], a.shape["D"]))
    parts = attend_parts(e, gathered, replace(tiles, queries=q), empty_row)
    parts = [e.reshape(x, (batch, e.shape(x)[1] * length, a.shape["H"], a.shape["E"])) for x in parts]
    if sinks and not (a.band is not None and a.band.causal):
        parts = [token_major(e, first_queries(e, a, sinks, empty_row)), *parts]
        found = e.map("add", found, e.constant(sinks, "int64"))
        if before:
            found = e.concat([e.iota(sinks), found], 0)
        else:
            at = e.iota(a.shape["I"])
            found = e.map("where", e.map("lt", at, e.constant(sinks, "int64")), at, found)
    return token_major(e, e.gather(parts[0] if len(parts) == 1 else e.concat(parts, 1), found, 1))


def _by_one_operator(e: Emitter, a: Canonical, back: int, ahead: int, sinks: int) -> Handle | None:
    """Emit a window by an operator that the target has for it, or nothing and return None."""
    if a.bias is not None or a.sink is not None:
        return None
    starts = a.band is None or a.band.offset == ZERO
    if not sinks and starts and a.shape["I"] == a.shape["J"]:
        settings = {"scale": a.scale, "left": back, "right": ahead, "softcap": a.softcap}
        found = e.standard("sliding_attention", a.q, a.k, a.v, **settings)
        if found is not None:
            return found

    def of_scores(inner: Emitter, scores: Handle) -> Handle:
        mask = _window_mask(inner, a, back, ahead, sinks, inner.dtype(scores))
        return capped_and_masked(inner, scores, a.softcap, mask)

    return e.standard("modified_attention", a.q, a.k, a.v, scale=a.scale, of_scores=of_scores)


def _inside(e: Emitter, at: Handle, size: Size) -> Handle:
    """Emit positions, those outside of an axis moved to its ends."""
    return e.map("minimum", e.map("maximum", at, e.constant(0, "int64")), e.size(size - 1))


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


def _masked(e: Emitter, a: Canonical, back: int, ahead: int, sinks: int, empty_row: EmptyRow) -> Handle:
    """Emit a window as a mask over all scores; ``[B, H, I, E]``."""
    mask = _window_mask(e, a, back, ahead, sinks, e.dtype(a.q))
    mask = e.reshape(mask, (1, 1, a.shape["I"], a.shape["J"]))
    bias = mask if a.bias is None else e.map("add", a.bias, mask)
    return emit_dense(e, replace(a, bias=bias, band=None), empty_row)


def _window_mask(e: Emitter, a: Canonical, back: int, ahead: int, sinks: int, dtype: str) -> Handle:
    """Emit what is added to the scores of a window, ``[I, J]``."""
    queries, keys = a.shape["I"], a.shape["J"]
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
    return mask


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
    return e.map("add", mask, hide(e, e.map("lt", lead, e.size(a.shape["J"])), dtype))


def first_queries(e: Emitter, a: Canonical, count: int, empty_row: EmptyRow) -> Handle:
    """Emit attention of the first queries to every key that the site lets them see."""

    def first(x: Handle | None) -> Handle | None:
        if x is None or e.shape(x)[2] == ONE:
            return x
        return e.slice(x if a.shape["I"].at_least(count) else e.pad(x, 2, 0, count), 2, 0, count)

    shape = {**a.shape, "I": Size.of(count)}
    part = replace(a, q=e.slice(a.q, 2, 0, count), bias=first(a.bias), sink=first(a.sink), shape=shape)
    return emit_dense(e, part, empty_row)
