"""Windowed attention by its definition: dense, plain, in float32 or wider."""

from __future__ import annotations

import torch

from rewriter.kernels.softmax.definition import BandLike, Operands, attend, band_mask, zero_where_blind

__all__ = ["window_attention", "window_mask"]


def window_mask(
    queries: int,
    keys: int,
    window: int,
    sinks: int = 0,
    grid: tuple[int, int] | None = None,
    band: BandLike | None = None,
) -> torch.Tensor:
    """Return ``[I, J]`` booleans: what a window lets a query see.

    Query ``i`` stands at position ``p = i + band.offset`` of the keys. It sees key ``j`` if the band does
    not forbid it, and one of these holds:

    - ``j`` or ``p`` is one of the first ``sinks`` positions;
    - there is no grid and ``j`` is near ``p``: if the band is causal, ``p - window < j <= p``; else
      ``|j - p| <= window // 2``;
    - both lie on the grid, whose row-major tokens follow the sinks, and rows and columns each differ by
      at most ``window // 2``.
    """
    at = torch.arange(queries)[:, None] + (int(band.offset) if band is not None else 0)
    key = torch.arange(keys)
    if grid is None:
        causal = band is not None and band.right == 0
        back, ahead = (window - 1, 0) if causal else (window // 2, window // 2)
        near = (key - at >= -back) & (key - at <= ahead)
    else:
        columns = grid[1]
        rows_apart = ((key - sinks) // columns - (at - sinks) // columns).abs()
        columns_apart = ((key - sinks) % columns - (at - sinks) % columns).abs()
        near = (rows_apart <= window // 2) & (columns_apart <= window // 2)
    return band_mask(band, queries, keys) & (near | (key < sinks) | (at < sinks))


def window_attention(
    x: Operands, *, window: int, sinks: int = 0, grid: tuple[int, int] | None = None
) -> torch.Tensor:
    """Return windowed attention, ``[B, H, I, E]``; a query whose window holds no visible key gives 0.

    Operands are as in `rewriter.kernels.softmax.definition.attend`, the mask is `window_mask`.
    """
    seen = window_mask(x.q.shape[2], x.k.shape[2], window, sinks, grid, x.band)
    return zero_where_blind(x, seen, attend(x, seen))
