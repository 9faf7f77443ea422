"""Attention of a few queries: the keys are split, so that many programs share them, and the parts are joined.

With one program per tile of queries, a few queries would leave most of a GPU idle. Each program attends to a
run of keys and keeps its result and the log-sum-exp of its scores; a softmax over these joins the runs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rewriter.kernels.softmax.online_triton import begin, divided, fold, log_sum
from rewriter.kernels.softmax.tiles_triton import (
    load_columns,
    load_rows,
    product,
    program_of,
    scores,
    store_rows,
    widens,
)

__all__ = ["forward", "runs_of"]

PROGRAMS = 264
"""Programs that are wanted at least: two for each multiprocessor of a large GPU."""


@triton.jit
def _attend_to_run(
    Q, K, V, BIAS, PART, LSE, sq, sk, sv, sb, sp, sizes, scale,
    HAS_BIAS: tl.constexpr, WIDEN: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, WIDTH: tl.constexpr, V_WIDTH: tl.constexpr,
):  # fmt: skip
    H, queries, keys, D, E, B, length = sizes[0], sizes[2], sizes[3], sizes[4], sizes[5], sizes[7], sizes[8]
    tile, b, h, g = program_of(sizes)
    run = tl.program_id(1)
    i = tile * ROWS + tl.arange(0, ROWS)
    i_real = i < queries
    q = load_rows(Q + b * sq[0] + h * sq[1], sq, i, i_real, D, WIDTH)
    K += b * sk[0] + g * sk[1]
    V += b * sv[0] + g * sv[1]
    BIAS += b * sb[0] + h * sb[1]
    top, total = begin(BIAS, sb, b, h, i, i_real, ROWS, False)
    out = tl.zeros([ROWS, V_WIDTH], tl.float32)
    end = tl.minimum((run + 1) * length, keys)
    for start in range(run * length, end, KEYS):
        j = start + tl.arange(0, KEYS)
        j_real = j < end
        k = load_columns(K, sk, j, j_real, D, WIDTH)
        real = i_real[:, None] & j_real[None, :]
        s, _ = scores(q, k, i, j, real, scale, 1.0, BIAS, sb, False, HAS_BIAS, WIDEN)
        s = tl.where(j_real[None, :], s, float("-inf"))
        p, shrink, top, total = fold(s, top, total)
        v = load_rows(V, sv, j, j_real, E, V_WIDTH)
        out = product(p.to(v.dtype), v, out * shrink[:, None], WIDEN)
    part = (run * B + b) * H + h
    store_rows(PART + part * sp[1], sp, i, i_real, E, divided(out, total), V_WIDTH)
    tl.store(LSE + part * queries + i, log_sum(top, total, float("-inf")), mask=i_real)


def runs_of(tiles: int, keys: int, tile: int) -> tuple[int, int]:
    """Return into how many runs keys are split, and how long one is: a multiple of the tile.

    Examples
    --------
    >>> runs_of(6, 4097, 64)
    (33, 128)
    >>> runs_of(1000, 4097, 64)
    (1, 4160)
    >>> runs_of(6, 1, 64)
    (1, 64)
    """
    blocks = triton.cdiv(keys, tile)
    wanted = max(1, min(blocks, triton.cdiv(PROGRAMS, tiles)))
    length = triton.cdiv(blocks, wanted)
    return triton.cdiv(blocks, length), length * tile


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    scale: float,
    tile: int | None = None,
    runs: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention ``[B, H, I, E]``, 0 for queries that see no key, and nothing for the gradient.

    Parameters
    ----------
    q, k, v, bias, scale
        As in `rewriter.kernels.softmax.definition.Operands`; any strides.
    tile
        Queries and keys per tile, a power of two from 16; chosen by the sizes if None.
    runs
        Programs that are wanted for each tile of queries; chosen by the sizes if None.
    """
    B, H, queries, width = q.shape
    keys, values = k.shape[2], v.shape[3]
    wide = max(16, triton.next_power_of_2(max(width, values)))
    small = q.element_size() == 2
    fits = tile or ((64 if small else 32) if wide <= 128 else (32 if small else 16))
    rows = tile or min(fits, max(16, triton.next_power_of_2(queries)))
    tiles = triton.cdiv(queries, rows)
    count, length = runs_of(tiles * B * H if runs is None else PROGRAMS // runs, keys, fits)
    parts = q.new_empty((count * B * H, queries, values), dtype=torch.float32)
    lse = q.new_empty((count, B, H, queries), dtype=torch.float32)
    spread = None if bias is None else bias.expand(B, H, queries, keys)
    _attend_to_run[(tiles * B * H, count)](
        q, k, v, q if spread is None else spread, parts, lse,
        q.stride(), k.stride(), v.stride(), (0, 0, 0, 0) if spread is None else spread.stride(),
        (0, *parts.stride()), (H, H // k.shape[1], queries, keys, width, values, tiles, B, length), scale,
        HAS_BIAS=bias is not None, WIDEN=widens(q.dtype), ROWS=rows, KEYS=fits,
        WIDTH=max(16, triton.next_power_of_2(width)), V_WIDTH=max(16, triton.next_power_of_2(values)),
    )  # fmt: skip
    # a query that sees no key in any run has no share in any
    shares = (lse - lse.logsumexp(0).nan_to_num(neginf=0.0)).exp()
    joined = torch.einsum("rbhi,rbhie->bihe", shares, parts.view(count, B, H, queries, values))
    return joined.to(q.dtype).transpose(1, 2), q.new_empty(0)
