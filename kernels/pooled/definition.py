"""Attention to near keys and to averages of the others by its definition: plain, in float32 or wider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rewriter.kernels.softmax.definition import Operands, attend, band_mask, operands_of, zero_where_blind

__all__ = [
    "Cells",
    "by_settings",
    "cell_averages",
    "first_cells",
    "near_keys",
    "pooled_attention",
    "seen_cells",
    "with_cells",
]


def near_keys(window: int, stride: int, causal: bool) -> int:
    """Return how many keys a group of ``stride`` queries sees one by one; see `first_cells`."""
    return window + stride if causal else window


def first_cells(
    at: torch.Tensor, size: int, window: int, stride: int, pool: int, causal: bool = False
) -> torch.Tensor:
    """Return the first cell of ``pool`` keys of one axis that each query sees key by key, ``[I]``.

    ``stride`` consecutive queries are a group. Without ``causal`` a group sees ``window / pool`` cells so:
    its own and half of the others on either side, the odd one before, moved inside at the ends; all if there
    are fewer. With ``causal`` it sees those of the ``window`` keys before it, and its own.

    Parameters
    ----------
    at
        Coordinates of the queries ``[I]``.
    size
        Length of the axis.
    window, stride, pool
        Numbers of keys; ``pool`` divides the others.
    causal
        As above.
    """
    first = at // stride * (stride // pool)
    if causal:
        return first - window // pool
    first = first + (stride - window) // (2 * pool)
    return first.clamp(max=-(-size // pool) - window // pool).clamp(min=0)


def seen_cells(
    at: torch.Tensor, size: int, window: int, stride: int, pool: int, causal: bool = False
) -> torch.Tensor:
    """Return ``[I, M]`` booleans: which cells a query sees key by key; the parameters are `first_cells`'."""
    first = first_cells(at, size, window, stride, pool, causal)[:, None]
    cell = torch.arange(-(-size // pool))
    return (cell >= first) & (cell < first + near_keys(window, stride, causal) // pool)


def cell_averages(
    x: torch.Tensor, cell: torch.Tensor, cells: int, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted mean of each cell ``[B, G, M, D]`` and the sum of its weights ``[B, M]``.

    The mean of a cell without weight is 0.

    Parameters
    ----------
    x
        Keys or values ``[B, G, J, D]``.
    cell
        Which cell each is in, ``[J]``; -1 for none.
    cells
        Number of cells.
    weight
        Of each key, ``[B, J]``.
    """
    member = (cell == torch.arange(cells)[:, None]).to(x.dtype)
    share = member * weight[:, None, :]
    total = share.sum(-1)
    sums = torch.einsum("bmj,bgjd->bgmd", share, x)
    return sums / total.clamp(min=torch.finfo(x.dtype).tiny)[:, None, :, None], total


def pooled_attention(
    x: Operands,
    *,
    window: tuple[int, ...],
    stride: tuple[int, ...],
    pool: tuple[int, ...],
    sinks: int = 0,
    grid: tuple[int, ...] | None = None,
) -> torch.Tensor:
    """Return attention to near keys, and to the average key and value of every other cell, in one softmax.

    Positions are those of the sequence, or of a row-major grid behind the first ``sinks`` tokens. They are
    cut into cells of ``pool`` along each axis. Query ``i`` at position ``i + band.offset`` sees

    - the keys of all cells that `seen_cells` allows along every axis, as far as the band does;
    - the first ``sinks`` keys, which are in no cell;
    - one key and one value for each other cell, at a causal site only of those before: the means over the
      keys of the cell, weighted by ``exp(bias)``. Its score has the log of the sum of these weights added:
      the number of its keys, less those that are hidden.

    The first ``sinks`` queries see every key that the band lets them see, and no average.

    Parameters
    ----------
    x
        As in `rewriter.kernels.softmax.definition.attend`; the bias is the same for all heads and queries.
    window, stride, pool
        One number per axis, as in `seen_cells`.
    sinks
        How many first tokens.
    grid
        Sizes of the axes, or None for the sequence.

    Returns
    -------
    torch.Tensor
        ``[B, H, I, E]``; a query that sees nothing gives 0.
    """
    found = with_cells(x, window=window, stride=stride, pool=pool, sinks=sinks, grid=grid)
    return zero_where_blind(found.joined, found.seen, attend(found.joined, found.seen))


@dataclass(frozen=True, eq=False)
class Cells:
    """Keys and values with those of the cells behind them.

    Parameters
    ----------
    joined
        Operands without a band; the bias of a cell is the logarithm of the sum of its weights.
    seen
        What each query sees of them, ``[I, J + M]``.
    cell
        Which cell each key is in, ``[J]``; -1 for none.
    weight
        Of each key in the average of its cell, ``[B, J]``.
    """

    joined: Operands
    seen: torch.Tensor
    cell: torch.Tensor
    weight: torch.Tensor


def with_cells(
    x: Operands,
    *,
    window: tuple[int, ...],
    stride: tuple[int, ...],
    pool: tuple[int, ...],
    sinks: int = 0,
    grid: tuple[int, ...] | None = None,
) -> Cells:
    """Return what `pooled_attention` attends to; its parameters."""
    queries, keys = x.q.shape[2], x.k.shape[2]
    causal = x.band is not None and x.band.right == 0
    at = torch.arange(queries) + (int(x.band.offset) if x.band is not None else 0)
    sizes, start = ((keys,), 0) if grid is None else (grid, sinks)
    cell, near, after = torch.zeros(keys, dtype=torch.int64), torch.ones(queries, 1, dtype=torch.bool), 1
    place, body = torch.arange(keys) - start, at - start
    for axis in reversed(range(len(sizes))):
        size, count = sizes[axis], -(-sizes[axis] // pool[axis])
        own = seen_cells(body % size if axis else body, size, window[axis], stride[axis], pool[axis], causal)
        near = (own[:, :, None] & near[:, None, :]).reshape(queries, -1)
        cell = cell + (place % size if axis else place) // pool[axis] * after
        place, body, after = place // size, body // size, after * count
    cell[:sinks] = -1
    first = (at < sinks)[:, None]
    local = near[:, cell.clamp(min=0)] | (cell < 0) | first
    others = ~near & ~first
    if causal:
        ends = (torch.arange(after) + 1) * pool[0]
        others &= ends <= at[:, None]

    wide = torch.promote_types(x.q.dtype, torch.float32)
    bias = torch.zeros(1, keys, dtype=wide) if x.bias is None else x.bias[:, 0, 0].to(wide).expand(-1, keys)
    means, total = cell_averages(x.k.to(wide), cell, after, bias.exp())
    values, _ = cell_averages(x.v.to(wide), cell, after, bias.exp())
    joined = Operands(
        x.q,
        torch.cat([x.k.to(wide), means], dim=2),
        torch.cat([x.v.to(wide), values], dim=2),
        torch.cat([bias, total.log()], dim=1)[:, None, None],
        x.scale,
        softcap=x.softcap,
        sink=x.sink,
    )
    seen = torch.cat([local & band_mask(x.band, queries, keys), others], dim=1)
    return Cells(joined, seen, cell, bias.exp())


def by_settings(
    *operands: Any,
    window: Sequence[int],
    stride: Sequence[int],
    pool: Sequence[int],
    grid: Sequence[int] | None = None,
    sinks: int = 0,
    empty_row: str = "zero",
    **settings: Any,
) -> torch.Tensor:
    """Return it by the settings of ``torch.ops.rewriter.pooled``."""
    axes = {"window": tuple(window), "stride": tuple(stride), "pool": tuple(pool)}
    sides = None if grid is None else tuple(grid)
    return pooled_attention(operands_of(*operands, **settings), **axes, sinks=sinks, grid=sides)
