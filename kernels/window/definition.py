"""Windowed attention by its definition: dense, plain, in float32 or wider."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rewriter.kernels.softmax.definition import (
    BandLike,
    Operands,
    attend,
    band_mask,
    operands_of,
    zero_where_blind,
)

__all__ = ["PerAxis", "axis_mask", "by_settings", "window_attention", "window_mask"]

PerAxis = int | tuple[int, ...]
"""One number for every axis of a grid, or one for each."""


def axis_mask(
    at: torch.Tensor,
    key: torch.Tensor,
    size: int,
    window: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    offset: int = 0,
    borders: str = "clip",
    causal: bool = False,
) -> torch.Tensor:
    """Return ``[I, J]`` booleans: which coordinates ``key`` queries at coordinates ``at`` see on one axis.

    Coordinates with the same remainder by ``dilation`` form a class, and a query sees keys of its class
    only. In its class a coordinate ``x`` has the rank ``x // dilation``, and ``stride`` queries of
    consecutive ranks form a group: rank ``r`` is in group ``(r + offset) // stride``. A group shares one
    window of ranks:

    - without ``causal``: the group and ``ceil((window - stride) / 2)`` more on either side. With borders
      ``"shift"`` a window that would reach over an end of the axis is moved inside, so that it holds as many
      keys there, too;
    - with ``causal``: the last ``window`` up to the end of the group, of which a query sees those up to its
      own.

    Parameters
    ----------
    at, key
        Coordinates ``[I]`` and ``[J]``, from 0.
    size
        Length of the axis.
    window, stride, dilation, offset, borders, causal
        As above; ``stride <= window``.
    """
    at, key = at[:, None], key[None, :]
    rank, key_rank = at // dilation, key // dilation
    first = (rank + offset) // stride * stride - offset
    if causal:
        low, high = first + stride - window, rank
    else:
        halo = -((stride - window) // 2)
        low, high = first - halo, first + stride - 1 + halo
        if borders == "shift":
            ranks, span = (size - at % dilation + dilation - 1) // dilation, high - low
            low = torch.minimum(low, ranks - 1 - span).clamp(min=0)
            high = low + span
    return ((key - at) % dilation == 0) & (low <= key_rank) & (key_rank <= high)


def window_mask(
    queries: int,
    keys: int,
    window: PerAxis,
    sinks: int = 0,
    grid: tuple[int, ...] | None = None,
    band: BandLike | None = None,
    *,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    offset: PerAxis = 0,
    borders: str = "clip",
) -> torch.Tensor:
    """Return ``[I, J]`` booleans: what a window lets a query see.

    Query ``i`` stands at position ``p = i + band.offset`` of the keys. It sees key ``j`` if the band does
    not forbid it, and one of these holds:

    - ``j`` or ``p`` is one of the first ``sinks`` positions;
    - there is no grid, and `axis_mask` lets position ``p`` see position ``j``; it is causal if the band is;
    - both lie on the grid, whose row-major tokens follow the sinks, and `axis_mask` allows it along every
      axis.
    """
    at = torch.arange(queries) + (int(band.offset) if band is not None else 0)
    key = torch.arange(keys)
    first = (key < sinks) | (at[:, None] < sinks)
    causal = grid is None and band is not None and band.right == 0
    sizes, start = ((keys,), 0) if grid is None else (grid, sinks)
    at, key = at - start, key - start
    near = torch.ones(queries, keys, dtype=torch.bool)
    for axis in reversed(range(len(sizes))):
        size = sizes[axis]
        own = {"stride": _on(stride, axis), "dilation": _on(dilation, axis), "offset": _on(offset, axis)}
        near &= axis_mask(
            at % size if axis else at,
            key % size if axis else key,
            size,
            _on(window, axis),
            **own,
            borders=borders,
            causal=causal,
        )
        at, key = at // size, key // size
    return band_mask(band, queries, keys) & (near | first)


def window_attention(
    x: Operands,
    *,
    window: PerAxis,
    sinks: int = 0,
    grid: tuple[int, ...] | None = None,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    offset: PerAxis = 0,
    borders: str = "clip",
) -> torch.Tensor:
    """Return windowed attention, ``[B, H, I, E]``; a query whose window holds no visible key gives 0.

    Operands are as in `rewriter.kernels.softmax.definition.attend`, the mask is `window_mask`.
    """
    seen = window_mask(
        x.q.shape[2],
        x.k.shape[2],
        window,
        sinks,
        grid,
        x.band,
        stride=stride,
        dilation=dilation,
        offset=offset,
        borders=borders,
    )
    return zero_where_blind(x, seen, attend(x, seen))


def _on(value: PerAxis, axis: int) -> int:
    return value if isinstance(value, int) else value[axis]


def by_settings(
    *operands: Any,
    window: Sequence[int],
    stride: Sequence[int] = (1,),
    dilation: Sequence[int] = (1,),
    phase: Sequence[int] = (0,),
    borders: str = "clip",
    grid: Sequence[int] | None = None,
    sinks: int = 0,
    **settings: Any,
) -> torch.Tensor:
    """Return windowed attention by the settings of ``torch.ops.rewriter.window``: ``phase`` is the offset."""
    per_axis = {"window": window, "stride": stride, "dilation": dilation, "offset": phase}
    return window_attention(
        operands_of(*operands, **settings),
        sinks=sinks,
        grid=None if grid is None else tuple(grid),
        borders=borders,
        **{name: tuple(numbers) for name, numbers in per_axis.items()},
    )
