"""Windowed attention by the kernels of softmax: tiles of queries meet only tiles of keys that they can see.

A window that slides along one axis is two numbers. Any other, with strides, dilation, moved borders or
several axes, is a table per axis: the first and the last coordinate that a query at each coordinate sees. On
a grid a tile of queries is a block of it, and meets the blocks around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from rewriter.kernels.softmax.fused_triton import attend, differentiate
from rewriter.kernels.softmax.tiles_triton import Seen

__all__ = ["backward", "forward", "seen_through"]


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    *,
    scale: float,
    softcap: float | None = None,
    empty_row: str = "never",
    tile: int | None = None,
    **window: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return windowed attention and the log-sum-exp of each row, as ``torch.ops.rewriter.window``.

    Parameters
    ----------
    q, k, v, bias, sink, scale, softcap, empty_row, tile
        As in `rewriter.kernels.softmax.fused_triton.attend`.
    window
        As in `seen_through`.
    """
    seen = seen_through(k.shape[2], q.device, **window)
    settings = {"scale": scale, "softcap": softcap, "empty_row": empty_row, "tile": tile}
    return attend(q, k, v, bias, sink, seen=seen, **settings)


def backward(
    grad: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    *operands: torch.Tensor | None,
    wanted: Sequence[bool] = (True,) * 5,
    scale: float,
    softcap: float | None = None,
    empty_row: str = "never",
    tile: int | None = None,
    **window: object,
) -> tuple[torch.Tensor | None, ...]:
    """Return the gradients of the operands, as `rewriter.kernels.softmax.fused_triton.differentiate`."""
    seen = seen_through(operands[1].shape[2], grad.device, **window)
    settings = {"wanted": wanted, "scale": scale, "softcap": softcap, "tile": tile}
    return differentiate(grad, out, lse, *operands, seen=seen, **settings)


def seen_through(
    keys: int,
    device: torch.device,
    *,
    window: Sequence[int],
    stride: Sequence[int] = (1,),
    dilation: Sequence[int] = (1,),
    phase: Sequence[int] = (0,),
    borders: str = "clip",
    grid: Sequence[int] | None = None,
    sinks: int = 0,
    offset: int = 0,
    left: int | None = None,
    right: int | None = None,
) -> Seen:
    """Return what a query sees through a window.

    Parameters
    ----------
    keys
        Their number.
    device
        Where tables are kept.
    window, stride, dilation, phase, borders, grid, sinks
        As in `rewriter.kernels.window.definition.window_mask`, one number per axis; ``phase`` is its
        ``offset``.
    offset, left, right
        The site's own band.
    """
    causal = grid is None and right == 0
    if grid is None and (stride[0], dilation[0], borders) == (1, 1, "clip"):
        back, ahead = (window[0] - 1, 0) if causal else (window[0] // 2, window[0] // 2)
        return Seen(offset, left, right, back, ahead, sinks)
    sizes = (keys,) if grid is None else tuple(grid)
    axes = tuple(
        (*axis, borders == "shift", causal)
        for axis in zip(sizes, window, stride, dilation, phase, strict=True)
    )
    table, inverse = _tables(axes, device)
    padding = (1,) * (3 - len(sizes))
    return Seen(
        offset,
        left,
        right,
        lead=sinks,
        sizes=(*padding, *sizes),
        table=table,
        inverse=inverse,
        dilation=(*padding, *dilation),
        grid=grid is not None,
    )


@lru_cache(maxsize=64)
def _tables(
    axes: tuple[tuple[int, int, int, int, int, bool, bool], ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what queries see and by which queries keys are seen at most, for three axes in a row."""
    alone = torch.zeros(2, 1, dtype=torch.int64)
    tables = [alone] * (3 - len(axes)) + [_range_on_axis(*axis) for axis in axes]
    joined = (torch.cat(parts, dim=1) for parts in (tables, [_inverse(t) for t in tables]))
    table, inverse = (t.to(device, torch.int32).contiguous() for t in joined)
    return table, inverse


def _range_on_axis(
    size: int, window: int, stride: int, dilation: int, phase: int, shift: bool, causal: bool
) -> torch.Tensor:
    """Return the first and the last coordinate that each coordinate sees, ``[2, size]``."""
    at = torch.arange(size)
    rank, place = at // dilation, at % dilation
    ranks = (size - place + dilation - 1) // dilation
    group = (rank + phase) // stride * stride - phase
    if causal:
        low, high = group + stride - window, rank
    else:
        halo = -((stride - window) // 2)
        low, high = group - halo, group + stride - 1 + halo
        if shift:
            length = high - low
            low = torch.minimum(low, ranks - 1 - length).clamp(min=0)
            high = low + length
    low, high = low.clamp(min=0), torch.minimum(high, ranks - 1)
    return torch.stack([low, high]) * dilation + place


def _inverse(table: torch.Tensor) -> torch.Tensor:
    """Return the first and the last coordinate from which each may be seen, ``[2, size]``."""
    low, high = table
    at = torch.arange(low.shape[0])
    first = torch.searchsorted(high.cummax(0).values, at)
    last = torch.searchsorted(low.flip(0).cummin(0).values.flip(0).contiguous(), at, right=True) - 1
    return torch.stack([first, last])
