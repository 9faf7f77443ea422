"""Tiles of attention in Triton: which tokens a tile holds, which tiles it meets, and their masked scores.

Tokens lie on one axis, or on a grid of up to three axes, whose tiles are blocks of the grid. ``place`` holds
the numbers of `Seen` and ``FLAGS`` says which of them count. On a tile are ``i`` the index of a query, ``j``
that of a key, and ``p = i + offset`` the position of the query among the keys. Addresses of rows are 64-bit;
arithmetic is in float32, and the operands of products keep their dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

__all__ = [
    "Seen",
    "coordinate",
    "keys_met",
    "load_columns",
    "load_rows",
    "masked_scores",
    "met_in",
    "product",
    "program_of",
    "program_of_keys",
    "queries_met",
    "scored_keys",
    "scores",
    "steps_of",
    "store_rows",
    "tokens_of",
    "widens",
]


@dataclass(frozen=True)
class Seen:
    """What a query sees, besides what a bias hides.

    Key ``j`` is seen from position ``p`` if ``-left <= j - p <= right``, and one of these holds:
    ``j < lead``, ``p < lead``, ``j`` is near ``p``.

    Parameters
    ----------
    offset, left, right
        The band; None is unbounded.
    back, ahead
        Near is ``-back <= j - p <= ahead``; None is unbounded.
    lead
        First tokens that see everything and are seen by everything.
    sizes
        Sizes of three axes that positions are counted on, the last one fastest; on a grid, tokens after
        ``lead`` are counted. None where there is no table.
    table, inverse
        For each coordinate of each axis, one axis after the other, the first and the last coordinate that is
        near a query there, int32 ``[2, sum of sizes]``, and at least all queries that it is near to.
    dilation
        A near coordinate also differs from the query's by a multiple of this, per axis.
    grid
        Whether tiles are blocks of the axes, and the lead is not on them.
    """

    offset: int = 0
    left: int | None = None
    right: int | None = None
    back: int | None = None
    ahead: int | None = None
    lead: int = 0
    sizes: tuple[int, int, int] | None = None
    table: torch.Tensor | None = None
    inverse: torch.Tensor | None = None
    dilation: tuple[int, int, int] = (1, 1, 1)
    grid: bool = False


def widens(dtype: torch.dtype) -> bool:
    """Whether operands of products must be widened: in the interpreter, for bfloat16."""
    return dtype == torch.bfloat16 and bool(triton.knobs.runtime.interpret)


@triton.jit
def product(a, b, sum, WIDEN: tl.constexpr):
    """Return ``sum + a b``; the interpreter needs wide operands, as it computes with the bits of bfloat16."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sum, input_precision="ieee")


@triton.jit
def program_of(sizes):
    """Return which tile of queries is a program's, and its element of the batch, head and head of keys."""
    tiles, heads = sizes[6], sizes[0]
    at = tl.program_id(0) // tiles
    h = (at % heads).to(tl.int64)
    return tl.program_id(0) % tiles, (at // heads).to(tl.int64), h, h // sizes[1]


@triton.jit
def program_of_keys(sizes):
    """Return which tile of keys is a program's, and its element of the batch and head of keys."""
    tiles, groups = sizes[6], sizes[0] // sizes[1]
    at = tl.program_id(0) // tiles
    return tl.program_id(0) % tiles, (at // groups).to(tl.int64), (at % groups).to(tl.int64)


@triton.jit
def load_rows(start, strides, at, real, size, WIDTH: tl.constexpr):
    """Load ``[len(at), WIDTH]``; 0 beyond what is real."""
    d = tl.arange(0, WIDTH)
    address = start + at[:, None].to(tl.int64) * strides[2] + d[None, :] * strides[3]
    return tl.load(address, mask=real[:, None] & (d < size)[None, :], other=0.0)


@triton.jit
def load_columns(start, strides, at, real, size, WIDTH: tl.constexpr):
    """Load the same transposed, ``[WIDTH, len(at)]``."""
    d = tl.arange(0, WIDTH)
    address = start + at[None, :].to(tl.int64) * strides[2] + d[:, None] * strides[3]
    return tl.load(address, mask=real[None, :] & (d < size)[:, None], other=0.0)


@triton.jit
def store_rows(start, strides, at, real, size, x, WIDTH: tl.constexpr):
    """Store ``[len(at), WIDTH]`` where it is real."""
    d = tl.arange(0, WIDTH)
    address = start + at[:, None].to(tl.int64) * strides[2] + d[None, :] * strides[3]
    tl.store(address, x.to(start.dtype.element_ty), mask=real[:, None] & (d < size)[None, :])


@triton.jit
def tokens_of(tile, count, lead, sizes, GRID: tl.constexpr, TILE: tl.constexpr):
    """Return the indices of a tile's tokens, and which of them exist: the lead's tiles, then the grid's."""
    LENGTH: tl.constexpr = TILE[0] * TILE[1] * TILE[2]
    n = tl.arange(0, LENGTH)
    flat = tile * LENGTH + n
    if not GRID:
        return flat, flat < count
    before = tl.cdiv(lead, LENGTH)
    block = tl.maximum(tile - before, 0)
    wide, high = tl.cdiv(sizes[2], TILE[2]), tl.cdiv(sizes[1], TILE[1])
    x = block % wide * TILE[2] + n % TILE[2]
    y = block // wide % high * TILE[1] + n // TILE[2] % TILE[1]
    z = block // (wide * high) * TILE[0] + n // (TILE[2] * TILE[1])
    at = lead + (z * sizes[1] + y) * sizes[2] + x
    real = (x < sizes[2]) & (y < sizes[1]) & (z < sizes[0])
    leads = tile < before
    return tl.where(leads, flat, at), tl.where(leads, flat < lead, real)


@triton.jit
def _interval(TABLE, sizes, start, first, size, OWN: tl.constexpr, OTHER: tl.constexpr):
    """Return the first tile and the number of tiles that the ``OWN`` coordinates from ``first`` reach."""
    at = first + tl.arange(0, OWN)
    high_row = sizes[0] + sizes[1] + sizes[2]
    low = tl.min(tl.load(TABLE + start + at, mask=at < size, other=2147483647), 0)
    high = tl.max(tl.load(TABLE + high_row + start + at, mask=at < size, other=-1), 0) + 1
    tile = tl.maximum(low, 0) // OTHER
    return tile, tl.maximum(tl.cdiv(tl.minimum(high, size), OTHER) - tile, 0)


@triton.jit
def _tiles_met(
    tile,
    count,
    others,
    own_shift,
    shift,
    before,
    after,
    near_before,
    near_after,
    lead,
    sizes,
    TABLE,
    BEFORE: tl.constexpr,
    AFTER: tl.constexpr,
    NEAR_BEFORE: tl.constexpr,
    NEAR_AFTER: tl.constexpr,
    TABLED: tl.constexpr,
    GRID: tl.constexpr,
    OWN: tl.constexpr,
    OTHER: tl.constexpr,
):
    """Return which tiles of others a tile of queries or keys meets.

    ``own_shift`` and ``shift`` bring indices of its own and of the others to positions. The result is the
    number of the others' first tiles that lead, then for each axis the first tile and the number of tiles.
    """
    L: tl.constexpr = OWN[0] * OWN[1] * OWN[2]
    N: tl.constexpr = OTHER[0] * OTHER[1] * OTHER[2]
    if GRID:
        own_lead = tl.cdiv(lead, L)
        block = tl.maximum(tile - own_lead, 0)
        wide, high = tl.cdiv(sizes[2], OWN[2]), tl.cdiv(sizes[1], OWN[1])
        x, y, z = block % wide * OWN[2], block // wide % high * OWN[1], block // (wide * high) * OWN[0]
        x0, nx = _interval(TABLE, sizes, sizes[0] + sizes[1], x, sizes[2], OWN[2], OTHER[2])
        y0, ny = _interval(TABLE, sizes, sizes[0], y, sizes[1], OWN[1], OTHER[1])
        z0, nz = _interval(TABLE, sizes, 0, z, sizes[0], OWN[0], OTHER[0])
        leading = tl.cdiv(lead, N)
        if tile < own_lead:
            x0, y0, z0 = 0, 0, 0
            nx, ny, nz = tl.cdiv(sizes[2], OTHER[2]), tl.cdiv(sizes[1], OTHER[1]), tl.cdiv(sizes[0], OTHER[0])
        return leading, x0, nx, y0, ny, z0, nz
    first = tile * L + own_shift
    last = tl.minimum(tile * L + L, count) - 1 + own_shift
    low, high = shift, others + shift
    if BEFORE:
        low = tl.maximum(low, first - before)
    if AFTER:
        high = tl.minimum(high, last + after + 1)
    leading = tl.cdiv(tl.maximum(tl.minimum(lead - shift, others), 0), N)
    if first >= lead:
        if NEAR_BEFORE:
            low = tl.maximum(low, first - near_before)
        if NEAR_AFTER:
            high = tl.minimum(high, last + near_after + 1)
        if TABLED:
            at = first + tl.arange(0, L)
            real = (at <= last) & (at >= 0) & (at < sizes[2])
            near = tl.load(TABLE + 2 + at, mask=real, other=2147483647)
            low = tl.maximum(low, tl.min(near, 0))
            near = tl.load(TABLE + 2 + sizes[2] + 2 + at, mask=real, other=-1)
            high = tl.minimum(high, tl.max(near, 0) + 1)
    x0 = tl.maximum(low - shift, 0) // N
    nx = tl.maximum(tl.cdiv(tl.maximum(high - shift, 0), N) - x0, 0)
    return tl.minimum(leading, x0), x0, nx, 0, 1, 0, 1


@triton.jit
def _tile_met(step, met, lead, sizes, GRID: tl.constexpr, TILE: tl.constexpr):
    """Return the number of the tile that is met in a step."""
    leading, x0, nx, y0, ny, z0 = met[0], met[1], met[2], met[3], met[4], met[5]
    past = tl.maximum(step - leading, 0)
    if GRID:
        wide, high = tl.cdiv(sizes[2], TILE[2]), tl.cdiv(sizes[1], TILE[1])
        x, y, z = past % nx + x0, past // nx % ny + y0, past // (nx * ny) + z0
        LENGTH: tl.constexpr = TILE[0] * TILE[1] * TILE[2]
        found = tl.cdiv(lead, LENGTH) + (z * high + y) * wide + x
    else:
        found = x0 + past
    return tl.where(step < leading, step, found)


@triton.jit
def keys_met(tile, queries, keys, place, TABLE, FLAGS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr):
    """Return which tiles of keys a tile of queries meets, for `steps_of` and `met_in`."""
    return _tiles_met(
        tile, queries, keys, place[0], 0, place[1], place[2], place[3], place[4], place[5], place[6], TABLE,
        FLAGS[0], FLAGS[1], FLAGS[2], FLAGS[3], FLAGS[4], FLAGS[5], ROWS, KEYS,
    )  # fmt: skip


@triton.jit
def queries_met(
    tile, keys, queries, place, INVERSE, FLAGS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr
):
    """Return which tiles of queries a tile of keys meets, for `steps_of` and `met_in`."""
    return _tiles_met(
        tile, keys, queries, 0, place[0], place[2], place[1], place[4], place[3], place[5], place[6], INVERSE,
        FLAGS[1], FLAGS[0], FLAGS[3], FLAGS[2], FLAGS[4], FLAGS[5], KEYS, ROWS,
    )  # fmt: skip


@triton.jit
def steps_of(met):
    """Return how many tiles are met."""
    return met[0] + met[2] * met[4] * met[6]


@triton.jit
def met_in(step, met, count, place, FLAGS: tl.constexpr, TILE: tl.constexpr):
    """Return the indices of the tokens that are met in a step, of ``count``, and which of them exist."""
    tile = _tile_met(step, met, place[5], place[6], FLAGS[5], TILE)
    return tokens_of(tile, count, place[5], place[6], FLAGS[5], TILE)


@triton.jit
def coordinate(position, sizes, AXIS: tl.constexpr):
    """Return the coordinate along one of three axes."""
    if AXIS == 2:
        return position % sizes[2]
    if AXIS == 1:
        return position // sizes[2] % sizes[1]
    return position // (sizes[2] * sizes[1])


@triton.jit
def _near_by_table(p, j, place, TABLE, GRID: tl.constexpr):
    """Return ``[len(p), len(j)]``: whether a key is near a position along every axis."""
    sizes, dilation = place[6], place[7]
    start = place[5] if GRID else 0
    total = sizes[0] + sizes[1] + sizes[2]
    p, j = tl.maximum(p - start, 0), tl.maximum(j - start, 0)
    near = tl.full([p.shape[0], j.shape[0]], 1, tl.int1)
    for AXIS in tl.static_range(3):
        if GRID or AXIS == 2:
            own, other = coordinate(p, sizes, AXIS), coordinate(j, sizes, AXIS)
            row = own
            if AXIS >= 1:
                row += sizes[0]
            if AXIS == 2:
                row += sizes[1]
            low = tl.load(TABLE + row, mask=row < total, other=0)
            high = tl.load(TABLE + total + row, mask=row < total, other=-1)
            near = near & (other[None, :] >= low[:, None]) & (other[None, :] <= high[:, None])
            near = near & ((other[None, :] - own[:, None]) % dilation[AXIS] == 0)
    return near


@triton.jit
def _through_window(i, j, place, TABLE, FLAGS: tl.constexpr):
    """Return ``[len(i), len(j)]``: whether a key is near a query, or one of them leads."""
    p, lead = i + place[0], place[5]
    apart = j[None, :] - p[:, None]
    near = (j < lead)[None, :] | (p < lead)[:, None]
    if FLAGS[4]:
        return near | _near_by_table(p, j, place, TABLE, FLAGS[5])
    inside = tl.full(apart.shape, 1, tl.int1)
    if FLAGS[2]:
        inside = inside & (apart >= -place[3])
    if FLAGS[3]:
        inside = inside & (apart <= place[4])
    return near | inside


@triton.jit
def _sees(i, j, place, TABLE, FLAGS: tl.constexpr):
    """Return ``[len(i), len(j)]``: what `Seen` says."""
    apart = j[None, :] - (i + place[0])[:, None]
    seen = tl.full(apart.shape, 1, tl.int1)
    if FLAGS[2] or FLAGS[3] or FLAGS[4]:
        seen = _through_window(i, j, place, TABLE, FLAGS)
    if FLAGS[0]:
        seen = seen & (apart >= -place[1])
    if FLAGS[1]:
        seen = seen & (apart <= place[2])
    return seen


@triton.jit
def scores(q, k, i, j, real, scale, cap, BIAS, sb, CAP: tl.constexpr, HAS_BIAS, WIDEN):
    """Return the scores ``[len(i), len(j)]`` of what is real, and their slope under the cap."""
    s = product(q, k, tl.zeros([q.shape[0], k.shape[1]], tl.float32), WIDEN) * scale
    slope = 1.0
    if CAP:
        decay = tl.exp(-2 * tl.abs(s / cap))
        capped = tl.where(s < 0, -1.0, 1.0) * (1 - decay) / (1 + decay)
        s = cap * capped
        slope = 1 - capped * capped
    if HAS_BIAS:
        address = BIAS + i[:, None].to(tl.int64) * sb[2] + j[None, :].to(tl.int64) * sb[3]
        s += tl.load(address, mask=real, other=0.0).to(tl.float32)
    return s, slope


@triton.jit
def masked_scores(q, k, i, j, real, scale, cap, BIAS, sb, place, TABLE, FLAGS, CAP, HAS_BIAS, WIDEN):
    """Return the scores ``[len(i), len(j)]``, -inf where nothing is seen, and their slope under the cap."""
    s, slope = scores(q, k, i, j, real, scale, cap, BIAS, sb, CAP, HAS_BIAS, WIDEN)
    seen = real & _sees(i, j, place, TABLE, FLAGS)
    return tl.where(seen, s, float("-inf")), slope


@triton.jit
def scored_keys(
    step, met, q, i, i_real, K, BIAS, sk, sb, sizes, place, TABLE, scale, cap,
    FLAGS, CAP, HAS_BIAS, WIDEN, KEYS, WIDTH,
):  # fmt: skip
    """Return the keys that queries meet in a step: indices, which exist, columns, and `masked_scores`."""
    j, j_real = met_in(step, met, sizes[3], place, FLAGS, KEYS)
    k = load_columns(K, sk, j, j_real, sizes[4], WIDTH)
    real = i_real[:, None] & j_real[None, :]
    s, slope = masked_scores(
        q, k, i, j, real, scale, cap, BIAS, sb, place, TABLE, FLAGS, CAP, HAS_BIAS, WIDEN
    )
    return j, j_real, k, s, slope
