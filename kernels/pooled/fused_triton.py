"""Near keys one by one and averages of all others, in one softmax and one pass.

A tile of queries meets the tiles of keys that its windows reach, and goes on with the cells with the same
maximum and sum. What a query sees key by key is a table per axis, as of windows; the cells are all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl

from rewriter.kernels.pooled.definition import first_cells, near_keys
from rewriter.kernels.softmax.fused_triton import launch, pointer, strides_of
from rewriter.kernels.softmax.online_triton import attend_near, begin, divided, fold
from rewriter.kernels.softmax.tiles_triton import (
    Seen,
    coordinate,
    keys_met,
    load_columns,
    load_rows,
    product,
    program_of,
    scores,
    store_rows,
    tokens_of,
)

__all__ = ["forward"]


@triton.jit
def _is_far(p, c, place, cells, pool, TABLE, CAUSAL: tl.constexpr, GRID: tl.constexpr):
    """Return ``[len(p), len(c)]``: whether a query does not see a cell key by key; later ones are none."""
    sizes, lead = place[6], place[5]
    start = lead if GRID else 0
    total = sizes[0] + sizes[1] + sizes[2]
    at = tl.maximum(p - start, 0)
    near = tl.full([p.shape[0], c.shape[0]], 1, tl.int1)
    for AXIS in tl.static_range(3):
        if GRID or AXIS == 2:
            row, other = coordinate(at, sizes, AXIS), coordinate(c, cells, AXIS)
            if AXIS >= 1:
                row += sizes[0]
            if AXIS == 2:
                row += sizes[1]
            low = tl.load(TABLE + row, mask=row < total, other=0) // pool[AXIS]
            near = near & (other[None, :] >= low[:, None])
            if not CAUSAL:
                high = tl.load(TABLE + total + row, mask=row < total, other=0) // pool[AXIS]
                near = near & (other[None, :] <= high[:, None])
    return (p >= lead)[:, None] & (near == 0)


@triton.jit
def _forward(
    Q, K, V, BIAS, SINK, CELL_K, CELL_V, CELL_BIAS, OUT, TABLE,
    sq, sk, sv, sb, ss, sck, scv, scb, so, sizes, place, cells, pool, scale, cap,
    FLAGS: tl.constexpr, CAP: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SINK: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, V_WIDTH: tl.constexpr,
):  # fmt: skip
    M: tl.constexpr = ROWS[0] * ROWS[1] * ROWS[2]
    N: tl.constexpr = KEYS[0] * KEYS[1] * KEYS[2]
    tile, b, h, g = program_of(sizes)
    queries = sizes[2]
    i, i_real = tokens_of(tile, queries, place[5], place[6], FLAGS[5], ROWS)
    q = load_rows(Q + b * sq[0] + h * sq[1], sq, i, i_real, sizes[4], WIDTH)
    top, total = begin(SINK, ss, b, h, i, i_real, M, HAS_SINK)
    met = keys_met(tile, queries, sizes[3], place, TABLE, FLAGS, ROWS, KEYS)
    out, top, total = attend_near(
        q, i, i_real, met, K + b * sk[0] + g * sk[1], V + b * sv[0] + g * sv[1],
        BIAS + b * sb[0] + h * sb[1], sk, sv, sb, sizes, place, TABLE, scale, cap,
        top, total, tl.zeros([M, V_WIDTH], tl.float32),
        FLAGS, CAP, HAS_BIAS, WIDEN, KEYS, WIDTH, V_WIDTH,
    )  # fmt: skip
    CELL_K += b * sck[0] + g * sck[1]
    CELL_V += b * scv[0] + g * scv[1]
    CELL_BIAS += b * scb[0] + h * scb[1]
    count = cells[0] * cells[1] * cells[2]
    if FLAGS[1]:
        first = tl.load(TABLE + 2 + i, mask=i_real, other=0) // pool[2]
        count = tl.minimum(count, tl.max(first, 0))
    for start in range(0, count, N):
        c = start + tl.arange(0, N)
        c_real = c < count
        k = load_columns(CELL_K, sck, c, c_real, sizes[4], WIDTH)
        real = i_real[:, None] & c_real[None, :]
        s, _ = scores(q, k, i, c, real, scale, cap, CELL_BIAS, scb, CAP, True, WIDEN)
        far = real & _is_far(i, c, place, cells, pool, TABLE, FLAGS[1], FLAGS[5])
        p, shrink, top, total = fold(tl.where(far, s, float("-inf")), top, total)
        v = load_rows(CELL_V, scv, c, c_real, sizes[5], V_WIDTH)
        out = product(p.to(v.dtype), v, out * shrink[:, None], WIDEN)
    store_rows(OUT + b * so[0] + h * so[1], so, i, i_real, sizes[5], divided(out, total), V_WIDTH)


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    *,
    scale: float,
    window: Sequence[int],
    stride: Sequence[int],
    pool: Sequence[int],
    grid: Sequence[int] | None = None,
    sinks: int = 0,
    offset: int = 0,
    left: int | None = None,
    right: int | None = None,
    softcap: float | None = None,
    empty_row: str = "zero",
    tile: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `rewriter.kernels.pooled.definition.pooled_attention`, and nothing for the gradient.

    Parameters
    ----------
    q, k, v, bias, sink, scale, softcap
        As in `rewriter.kernels.softmax.definition.Operands`; any strides. The bias is the same for all heads
        and queries.
    window, stride, pool, grid, sinks
        As in `rewriter.kernels.pooled.definition.pooled_attention`.
    offset, left, right
        The site's own band: none, or causal.
    empty_row
        Not read: a query that sees nothing gives 0.
    tile
        Tokens per tile, a power of two from 16; chosen by the sizes if None.
    """
    B, H, queries, _ = q.shape
    out = q.new_empty(B, queries, H, v.shape[3]).transpose(1, 2)
    if not out.numel():
        return out, q.new_empty(0)
    given = ((k.shape[2],) if grid is None else grid, window, stride, pool)
    sizes, window, stride, pool = ((1,) * (3 - len(n)) + tuple(n) for n in given)
    table = _table(tuple(zip(sizes, window, stride, pool, strict=True)), right == 0, q.device)
    seen = Seen(offset, left, right, lead=sinks, sizes=sizes, table=table, grid=grid is not None)
    cell_k, cell_v, logs = cell_means(k, v, bias, sizes, pool, sinks, grid is not None)
    means = (cell_k, cell_v, logs.expand(B, H, queries, -1))
    cells = tuple(-(-size // n) for size, n in zip(sizes, pool, strict=True))
    x = launch(q, k, v, bias, sink, scale, softcap, seen, tile)
    tiles = x.count(queries, x.rows)
    _forward[(tiles * B * H,)](
        q, k, v, pointer(x.bias, q), pointer(x.sink, q), *means, out, table,
        q.stride(), k.stride(), v.stride(), strides_of(x.bias), strides_of(x.sink)[:3],
        *(t.stride() for t in means), out.stride(),
        x.sizes(tiles), x.place, cells, pool, scale, softcap or 1.0,
        HAS_SINK=sink is not None, num_stages=2, **x.constants,
    )  # fmt: skip
    return out, q.new_empty(0)


def cell_means(
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    sizes: Sequence[int],
    pool: Sequence[int],
    sinks: int,
    grid: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the average key and value of each cell ``[B, G, M, D]``, and what is added to its scores.

    The latter is float32, ``[B, 1, 1, M]``: the logarithm of the sum of the weights ``exp(bias)``.

    Parameters
    ----------
    k, v, bias
        Of all tokens.
    sizes, pool
        Of three axes.
    sinks
        First tokens, which are in no cell.
    grid
        Whether the axes begin behind them.
    """
    B, _, keys, _ = k.shape
    weight = k.new_ones((B, keys), dtype=torch.float32)
    if bias is not None:
        weight = weight * bias[:, 0, 0].float().exp()
    weight = weight.index_fill(1, torch.arange(min(sinks, keys), device=k.device), 0.0) if sinks else weight
    weight = weight[:, sinks if grid else 0 :, None]
    total = _over_cells(weight, sizes, pool)

    def mean(x: torch.Tensor) -> torch.Tensor:
        tokens = x[:, :, keys - weight.shape[1] :].transpose(1, 2)
        sums = _over_cells(tokens.flatten(2).float() * weight, sizes, pool)
        means = sums / total.clamp(min=torch.finfo(torch.float32).tiny)
        return means.unflatten(2, tokens.shape[2:]).transpose(1, 2).to(x.dtype)

    return mean(k), mean(v), total.log()[:, None, None, :, 0]


def _over_cells(x: torch.Tensor, sizes: Sequence[int], pool: Sequence[int]) -> torch.Tensor:
    """Return the sums over cells of tokens ``[B, ∏ sizes, W]``: ``[B, M, W]``."""
    batch, _, width = x.shape
    x = x.reshape(batch, *sizes, width)
    for axis, (size, length) in enumerate(zip(sizes, pool, strict=True), start=1):
        if length > 1:
            padding = (0, 0) * (3 - axis) + (0, 0, 0, -size % length)
            x = torch.nn.functional.pad(x, padding).unflatten(axis, (-1, length)).sum(axis + 1)
    return x.reshape(batch, -1, width)


@lru_cache(maxsize=64)
def _table(axes: tuple[tuple[int, int, int, int], ...], causal: bool, device: torch.device) -> torch.Tensor:
    """Return the first and the last coordinate that a query at each coordinate sees key by key.

    For three axes in a row, int32 ``[2, sum of sizes]``.
    """
    tables = []
    for size, window, stride, pool in axes:
        first = first_cells(torch.arange(size), size, window, stride, pool, causal)
        after = first * pool + near_keys(window, stride, causal)
        last = torch.minimum(after, torch.tensor(size)) - 1
        tables.append(torch.stack([(first * pool).clamp(min=0), last]))
    return torch.cat(tables, dim=1).to(device, torch.int32).contiguous()
