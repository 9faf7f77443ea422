"""Attention in tiles: each tile of queries reads only its own list of keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rewriter.algebra.sizes import ONE, Size
from rewriter.forms import Canonical
from rewriter.kernels.softmax.time import FILL
from rewriter.lower.emitter import Emitter, EmptyRow, Handle

__all__ = [
    "GATHERING",
    "Tiles",
    "attend_parts",
    "attend_tiles",
    "price",
    "price_of_all",
    "token_major",
]

LARGEST_COPY = 4 << 20
"""Bytes of keys that one call gathers.

Fewer are still in the cache when they are read: on a CPU twice as many take a tenth longer in all. From 40 MB
on, buffers come from fresh pages of the system at every call, and gathering takes ten times as long.
"""

LARGEST_UNROLL = 16
"""Calls that a site may be split into."""

GATHERING = 30_000
"""Scores in the time of the calls that deal queries to tiles and put their results in order."""


@dataclass(frozen=True)
class Tiles:
    """Which query reads which keys.

    Parameters
    ----------
    queries
        Token-major tiles ``[B, N, T, H, D]``.
    keys
        Index of each tile's keys, ``[N, K]``.
    mask
        Added to the scores, ``[N or 1, 1, T or 1, K]``, or None.
    rows
        Index of each tile's queries, ``[N, T]``, for what differs by query: a bias, a sink.
    """

    queries: Handle
    keys: Handle
    mask: Handle | None
    rows: Handle


def price(count: int, queries: int, keys: int) -> int:
    """Return what ``count`` tiles cost, in scores: rows and columns that pay for themselves are 32 and 64.

    Fitted to times on CPU at 256 to 4,096 tokens, windows of 16 to 512 tokens and of 7×7 and 13×13.
    """
    return count * ((queries + 32) * (keys + 64) + 3000)


def price_of_all(queries: int, keys: int) -> int:
    """Return what one call costs in which all queries meet all keys under a mask, in scores."""
    return (queries + FILL) * (keys + FILL)


def attend_tiles(e: Emitter, a: Canonical, tiles: Tiles, empty_row: EmptyRow) -> Handle:
    """Emit attention of every tile; return ``[B, N, T, H, E]``."""
    results = attend_parts(e, a, tiles, empty_row)
    return results[0] if len(results) == 1 else e.concat(results, 1)


def attend_parts(e: Emitter, a: Canonical, tiles: Tiles, empty_row: EmptyRow) -> list[Handle]:
    """Emit attention of every tile; return ``[B, n, T, H, E]`` for some of them at a time."""
    results = []
    rows = _token_rows(e, a.k), _token_rows(e, a.v)
    for start, count in _chunks(e, a, tiles):
        part = tiles if start is None else _part(e, tiles, start, count)
        results.append(_attend(e, a, rows, part, empty_row))
    return results


def token_major(e: Emitter, x: Handle) -> Handle:
    """Swap heads and tokens of ``[B, H, I, D]``, either way."""
    return e.permute(x, (0, 2, 1, 3))


def _token_rows(e: Emitter, x: Handle) -> Handle:
    """Bring ``[B, G, J, D]`` to ``[B, J, G·D]``: rows of which tiles gather whole ones."""
    batch, groups, keys, width = e.shape(x)
    return e.reshape(token_major(e, x), (batch, keys, groups * width))


def _attend(
    e: Emitter, a: Canonical, rows: tuple[Handle, Handle], tiles: Tiles, empty_row: EmptyRow
) -> Handle:
    batch, count, length, heads, width = e.shape(tiles.queries)
    keys = e.shape(tiles.keys)[1]
    flat = e.reshape(tiles.keys, (count * keys,))
    q = token_major(e, e.reshape(tiles.queries, (batch * count, length, heads, width)))
    k, v = (
        token_major(e, e.reshape(e.gather(row, flat, 1), (batch * count, keys, groups, size)))
        for row, (_, groups, _, size) in zip(rows, (e.shape(a.k), e.shape(a.v)), strict=True)
    )
    mask = _with_bias(e, a, tiles, flat) if a.bias is not None else _of_every_tile(e, tiles, batch)
    result = e.attention(
        q,
        k,
        v,
        scale=a.scale,
        bias=mask,
        empty_row=empty_row,
        softcap=a.softcap,
        sink=None if a.sink is None else _tiled_sink(e, a.sink, tiles),
    )
    return e.reshape(token_major(e, result), (batch, count, length, heads, e.shape(a.v)[3]))


def _of_every_tile(e: Emitter, tiles: Tiles, batch: Size) -> Handle | None:
    """Emit the mask of all tiles of all batch elements; one for all stays one."""
    mask = tiles.mask
    if mask is None or batch == ONE or e.shape(mask)[0] == ONE:
        return mask
    count, _, rows, keys = e.shape(mask)
    spread = e.expand(_lead(e, mask), (batch, count, ONE, rows, keys))
    return e.reshape(spread, (batch * count, ONE, rows, keys))


def _with_bias(e: Emitter, a: Canonical, tiles: Tiles, flat: Handle) -> Handle:
    """Emit mask plus the bias of each tile's queries and keys, ``[B·N, h, T or 1, K]``."""
    batch, count, length, _, _ = e.shape(tiles.queries)
    keys, wide = e.shape(tiles.keys)[1], a.shape["J"]
    b, h, i, j = e.shape(a.bias)
    bias = a.bias if j == wide else e.expand(a.bias, (b, h, i, wide))
    if i == ONE:
        part = e.gather(bias, flat, 3)
    else:
        first = e.map("mul", e.reshape(tiles.rows, (count, length, ONE)), e.size(wide))
        pairs = e.map("add", first, e.reshape(tiles.keys, (count, ONE, keys)))
        part = e.gather(e.reshape(bias, (b, h, i * wide)), e.reshape(pairs, (count * length * keys,)), 2)
    part = e.reshape(part, (b, h, count, ONE if i == ONE else length, keys))
    part = e.permute(part, (0, 2, 1, 3, 4))
    if tiles.mask is not None:
        part = e.map("add", part, _lead(e, tiles.mask))
    _, _, h, rows, _ = e.shape(part)
    if b != batch:
        part = e.expand(part, (batch, count, h, rows, keys))
    return e.reshape(part, (batch * count, h, rows, keys))


def _tiled_sink(e: Emitter, sink: Handle, tiles: Tiles) -> Handle:
    """Emit the sinks of each tile's queries, ``[B·N, h, T, S]``; as they are where all share them."""
    batch, count, length, _, _ = e.shape(tiles.queries)
    b, h, i, s = e.shape(sink)
    if b == ONE and i == ONE:
        return sink
    rows = ONE if i == ONE else length
    if i != ONE:
        sink = e.gather(sink, e.reshape(tiles.rows, (count * length,)), 2)
        sink = e.permute(e.reshape(sink, (b, h, count, length, s)), (0, 2, 1, 3, 4))
    else:
        sink = e.reshape(sink, (b, ONE, h, ONE, s))
    sink = e.expand(sink, (batch, count, h, rows, s))
    return e.reshape(sink, (batch * count, h, rows, s))


def _lead(e: Emitter, x: Handle) -> Handle:
    return e.reshape(x, (ONE, *e.shape(x)))


def _chunks(e: Emitter, a: Canonical, tiles: Tiles) -> Iterator[tuple[int | None, int]]:
    """Yield ``(start, count)`` ranges of tiles, or one ``(None, 0)`` for all of them."""
    count = e.shape(tiles.keys)[0].known()
    copied = (e.shape(tiles.keys)[1] * a.shape["G"] * a.shape["D"]).known()
    if count is None or copied is None:
        yield None, 0
        return
    fits = max(1, LARGEST_COPY // (4 * copied * (a.shape["B"].known() or 1)))
    parts = min(-(-count // fits), LARGEST_UNROLL)
    if parts == 1:
        yield None, 0
        return
    each = -(-count // parts)
    for start in range(0, count, each):
        yield start, min(each, count - start)


def _part(e: Emitter, tiles: Tiles, start: int, count: int) -> Tiles:
    mask = tiles.mask
    return Tiles(
        queries=e.slice(tiles.queries, 1, start, count),
        keys=e.slice(tiles.keys, 0, start, count),
        mask=mask if mask is None or e.shape(mask)[0] == ONE else e.slice(mask, 0, start, count),
        rows=e.slice(tiles.rows, 0, start, count),
    )
