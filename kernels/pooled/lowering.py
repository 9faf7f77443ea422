"""How keys near a tile of queries and averages of the others are emitted: one list of keys for each tile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from rewriter.algebra.sizes import ONE, ZERO, Size, product
from rewriter.forms import Canonical
from rewriter.kernels.window.axes import AxisTiles, AxisWindow
from rewriter.kernels.window.grids import axes_mask, hide, on_grid, places
from rewriter.kernels.window.lowering import attend_axes, first_queries
from rewriter.kernels.window.tiles import Tiles, attend_tiles, token_major
from rewriter.lower.emitter import Emitter, EmptyRow, Handle

__all__ = ["PooledAxis", "emit_line", "emit_plane"]


@dataclass(frozen=True)
class PooledAxis:
    """One axis: ``stride`` queries are a group that sees ``window`` keys one by one, ``causal`` its own, too.

    Of others, ``pool`` are averaged.
    """

    window: int
    stride: int
    pool: int
    causal: bool = False

    @property
    def near(self) -> int:
        """Keys that a group of queries sees one by one."""
        return self.window + self.stride if self.causal else self.window

    @property
    def reach(self) -> int:
        """Cells that it sees so."""
        return self.near // self.pool

    @property
    def halo(self) -> int:
        """Of those, the ones before the group."""
        return self.window // self.pool if self.causal else -((self.stride - self.window) // (2 * self.pool))

    @property
    def step(self) -> int:
        """Cells of a group."""
        return self.stride // self.pool


def emit_line(e: Emitter, a: Canonical, axis: PooledAxis, sinks: int, empty_row: EmptyRow) -> Handle:
    """Emit it along one axis of any length; ``[B, H, I, E]``.

    The bias is the same for all heads and queries.
    """
    causal = axis.causal
    queries, keys, heads = a.shape["I"], a.shape["J"], a.shape["H"]
    groups, cells = e.ceil_div(queries, axis.stride), e.ceil_div(keys, axis.pool)
    gathered, logs = _with_cells(e, a, (axis,), (keys,), (cells,), ZERO, sinks)
    first = _first_cells(e, axis, groups, cells)
    rows = e.map("mul", e.reshape(e.iota(groups), (groups, ONE)), e.constant(axis.stride, "int64"))
    rows = e.map("add", rows, e.iota(axis.stride))
    columns = [
        _near_keys(e, a, axis, first, rows, sinks),
        _far_cells(e, a, axis, first, cells, logs),
    ]
    if sinks:
        columns.insert(0, _first_keys(e, a, sinks, rows))
    length = axis.stride if causal else 1

    padded = groups * axis.stride
    q = e.pad(a.q, 2, 0, padded - queries) if padded != queries else a.q
    tiles = Tiles(
        queries=e.reshape(token_major(e, q), (a.shape["B"], groups, axis.stride, heads, a.shape["D"])),
        keys=e.concat([e.expand(c.index, (groups, e.shape(c.index)[1])) for c in columns], 1),
        mask=e.concat([e.expand(c.mask, (groups, ONE, length, e.shape(c.mask)[3])) for c in columns], 3),
        rows=e.map("minimum", rows, e.size(queries - 1)),
    )
    result = attend_tiles(e, gathered, tiles, empty_row)
    result = token_major(e, e.reshape(result, (a.shape["B"], padded, heads, a.shape["E"])))
    if sinks and not causal:
        head = first_queries(e, replace(a, q=q), sinks, empty_row)
        result = e.concat([head, e.slice(result, 2, sinks, padded - sinks)], 2)
    return e.slice(result, 2, 0, queries) if padded != queries else result


@dataclass(frozen=True)
class _Columns:
    """Keys of each group: where they are, ``[N or 1, K]``, and a mask ``[N or 1, 1, T or 1, K]``."""

    index: Handle
    mask: Handle


def _first_cells(e: Emitter, axis: PooledAxis, groups: Size, cells: Size) -> Handle:
    """Emit the first cell that each group sees key by key, ``[N, 1]``; below 0 before a causal site."""
    own = e.map("mul", e.reshape(e.iota(groups), (groups, ONE)), e.constant(axis.step, "int64"))
    first = e.map("sub", own, e.constant(axis.halo, "int64"))
    if axis.causal:
        return first
    return e.map("maximum", e.map("minimum", first, e.size(cells - axis.reach)), e.constant(0, "int64"))


def _near_keys(
    e: Emitter, a: Canonical, axis: PooledAxis, first: Handle, rows: Handle, sinks: int
) -> _Columns:
    groups, keys = e.shape(first)[0], a.shape["J"]
    at = e.map("add", e.map("mul", first, e.constant(axis.pool, "int64")), e.iota(axis.near))
    seen = e.map("and", e.map("lt", at, e.size(keys)), e.map("ge", at, e.constant(sinks, "int64")))
    seen = e.reshape(seen, (groups, ONE, ONE, axis.near))
    if a.band is not None:
        own = e.reshape(rows, (groups, ONE, axis.stride, ONE))
        seen = e.map("and", seen, e.map("le", e.reshape(at, (groups, ONE, ONE, axis.near)), own))
    index = e.map("minimum", e.map("maximum", at, e.constant(0, "int64")), e.size(keys - 1))
    return _Columns(index, hide(e, seen, e.dtype(a.q)))


def _far_cells(
    e: Emitter, a: Canonical, axis: PooledAxis, first: Handle, cells: Size, logs: Handle | None
) -> _Columns:
    cell = e.iota(cells)
    seen = e.map("lt", cell, first)
    if a.band is None:
        behind = e.map("ge", cell, e.map("add", first, e.constant(axis.reach, "int64")))
        seen = e.map("or", seen, behind)
    mask = hide(e, e.reshape(seen, (e.shape(first)[0], ONE, ONE, cells)), e.dtype(a.q))
    index = e.reshape(e.map("add", cell, e.size(a.shape["J"])), (ONE, cells))
    return _Columns(index, mask if logs is None else e.map("add", mask, logs))


def _first_keys(e: Emitter, a: Canonical, sinks: int, rows: Handle) -> _Columns:
    (groups, length), lead = e.shape(rows), e.iota(sinks)
    seen = e.reshape(e.map("lt", lead, e.size(a.shape["J"])), (ONE, ONE, ONE, sinks))
    if a.band is not None:
        seen = e.map("and", seen, e.map("le", lead, e.reshape(rows, (groups, ONE, length, ONE))))
    index = e.reshape(e.map("minimum", lead, e.size(a.shape["J"] - 1)), (ONE, sinks))
    return _Columns(index, hide(e, seen, e.dtype(a.q)))


def emit_plane(
    e: Emitter,
    a: Canonical,
    axes: Sequence[PooledAxis],
    sizes: Sequence[int],
    sinks: int,
    empty_row: EmptyRow,
) -> Handle:
    """Emit it on a row-major grid of known size behind the sinks; ``[B, H, I, E]``.

    The bias is the same for all heads and queries.
    """
    cells = [-(-size // axis.pool) for size, axis in zip(sizes, axes, strict=True)]
    known, counts = ([Size.of(n) for n in found] for found in (sizes, cells))
    gathered, logs = _with_cells(e, a, axes, known, counts, Size.of(sinks), sinks)
    tiles, first = zip(*(_near(axis, size) for axis, size in zip(axes, sizes, strict=True)), strict=True)
    rows = on_grid(e, [t.queries for t in tiles], sizes, sinks)
    far = e.constant(_others(first, axes, cells), "int64")
    index = [
        on_grid(e, [np.maximum(t.keys, 0) for t in tiles], sizes, sinks),
        e.map("add", far, e.size(a.shape["J"])),
    ]
    if sinks:
        index.insert(0, e.expand(e.iota(sinks), (e.shape(far)[0], sinks)))
    mask = _plane_mask(e, a, tiles, far, logs)
    if mask is not None and sinks:
        mask = e.pad(mask, 3, sinks, 0)
    found = Tiles(rows, e.concat(index, 1), mask, rows)
    return attend_axes(e, a, gathered, places(e, tiles), found, sinks, empty_row, before=True)


def _plane_mask(
    e: Emitter, a: Canonical, tiles: Sequence[AxisTiles], far: Handle, logs: Handle | None
) -> Handle | None:
    """Emit what is added to the scores of near keys and of cells: ``[N or 1, 1, 1, K]``; None for nothing.

    Where no cell is cut off at the end of an axis, it is the same for all tiles.
    """
    dtype, (count, others) = e.dtype(a.q), e.shape(far)
    uniform = all((t.keys >= 0).all() for t in tiles)
    if uniform and logs is None:
        return None
    lead = ONE if uniform else count
    reach = math.prod(t.reach for t in tiles)
    if uniform:
        near = e.constant(np.zeros((1, 1, 1, reach)), dtype)
    else:
        near = axes_mask(e, tiles, dtype, masked=True)
    if logs is None:
        return e.pad(near, 3, 0, others)
    chosen = e.slice(far, 0, 0, 1) if uniform else far
    added = e.gather(logs, e.reshape(chosen, (lead * others,)), 3)
    return e.concat([near, e.reshape(added, (lead, ONE, ONE, others))], 3)


def _near(axis: PooledAxis, size: int) -> tuple[AxisTiles, np.ndarray]:
    """Return groups of queries with the keys they see one by one, and the first cell of each group's."""
    cells = -(-size // axis.pool)
    reach = min(cells, axis.reach)
    groups = AxisWindow(size, axis.window, axis.stride).tiles(axis.stride)
    first = np.clip(np.arange(groups.count) * axis.step - axis.halo, 0, cells - reach)[:, None]
    keys = first * axis.pool + np.arange(reach * axis.pool)
    ends = np.zeros_like(first), np.full_like(first, size - 1)
    return AxisTiles(groups.queries, np.where(keys < size, keys, -1), *ends), first


def _others(first: Sequence[np.ndarray], axes: Sequence[PooledAxis], cells: Sequence[int]) -> np.ndarray:
    """Return the cells that each tile does not see key by key, ``[N, M - near]``, row-major."""
    near = np.ones((1, 1), np.bool_)
    for start, axis, count in zip(first, axes, cells, strict=True):
        cell = np.arange(count)
        own = (cell >= start) & (cell < start + axis.reach)
        near = (near[:, None, :, None] & own[None, :, None, :]).reshape(len(near) * len(own), -1)
    return np.stack([np.flatnonzero(~row) for row in near])


def _with_cells(
    e: Emitter,
    a: Canonical,
    axes: Sequence[PooledAxis],
    sizes: Sequence[Size],
    cells: Sequence[Size],
    start: Size,
    sinks: int,
) -> tuple[Canonical, Handle | None]:
    """Emit operands with one more key, value and bias for each cell, and the logs of counts without a bias.

    The logs are ``[1, 1, 1, M]``; None where there is a bias, which has them.
    """
    weight = _weights(e, a, sizes, start, sinks)

    def pooled(x: Handle) -> Handle:
        """Sum tokens ``[B, J, …]`` from ``start`` over each cell: ``[B, M, …]``."""
        body = x if e.shape(x)[1] == product(sizes) else e.slice(x, 1, start, product(sizes))
        return _cell_sums(e, body, axes, sizes, cells)

    total = pooled(weight) if weight is not None else _counts(e, axes, sizes, cells, e.dtype(a.q))
    share = e.map("maximum", total, e.constant(float(np.finfo(np.float16).tiny), e.dtype(a.q)))

    def joined(x: Handle) -> Handle:
        tokens = token_major(e, x)
        b, _, g, width = e.shape(tokens)
        flat = e.reshape(tokens, (b, a.shape["J"], g * width))
        weighted = flat if weight is None else e.map("mul", flat, weight)
        means = e.map("div", pooled(weighted), share)
        both = e.concat([flat, means], 1)
        return token_major(e, e.reshape(both, (b, a.shape["J"] + product(cells), g, width)))

    logs = e.reshape(e.map("log", total), (e.shape(total)[0], ONE, ONE, product(cells)))
    shape = {**a.shape, "J": a.shape["J"] + product(cells)}
    found = replace(a, k=joined(a.k), v=joined(a.v), shape=shape, band=None)
    if a.bias is None:
        return found, logs
    b = e.shape(a.bias)[0]
    bias = a.bias if e.shape(a.bias)[3] == a.shape["J"] else e.expand(a.bias, (b, ONE, ONE, a.shape["J"]))
    return replace(found, bias=e.concat([bias, logs], 3)), None


def _weights(e: Emitter, a: Canonical, sizes: Sequence[Size], start: Size, sinks: int) -> Handle | None:
    """Emit what each token counts in the average of its cell, ``[B or 1, J, 1]``; None if each counts 1."""
    keys, dtype = a.shape["J"], e.dtype(a.q)
    weight = None
    if a.bias is not None:
        b = e.shape(a.bias)[0]
        weight = e.reshape(e.expand(e.map("exp", a.bias), (b, ONE, ONE, keys)), (b, keys, ONE))
    if sinks and start == ZERO:
        behind = e.map("ge", e.iota(keys), e.constant(sinks, "int64"))
        behind = e.reshape(e.map("cast", behind, dtype=dtype), (ONE, keys, ONE))
        weight = behind if weight is None else e.map("mul", weight, behind)
    return weight


def _cell_sums(
    e: Emitter, x: Handle, axes: Sequence[PooledAxis], sizes: Sequence[Size], cells: Sequence[Size]
) -> Handle:
    """Emit the sums over cells of ``[B, ∏ sizes, W]``: ``[B, ∏ cells, W]``."""
    b, _, width = e.shape(x)
    done: list[Size] = []
    for axis, size, count in reversed(list(zip(axes, sizes, cells, strict=True))):
        lead = b * product(sizes[: len(sizes) - len(done) - 1])
        inner = product(done) * width
        x = e.reshape(x, (lead, size, inner))
        padded = count * axis.pool
        x = e.pad(x, 1, 0, padded - size) if padded != size else x
        x = e.reduce("sum", e.reshape(x, (lead * count, axis.pool, inner)), 1)
        done.insert(0, count)
    return e.reshape(x, (b, product(cells), width))


def _counts(
    e: Emitter, axes: Sequence[PooledAxis], sizes: Sequence[Size], cells: Sequence[Size], dtype: str
) -> Handle:
    """Emit how many tokens each cell has, ``[1, M, 1]``."""
    total = e.constant(np.ones((1, 1)), "int64")
    for axis, size, count in zip(axes, sizes, cells, strict=True):
        before = e.map("mul", e.iota(count), e.constant(axis.pool, "int64"))
        own = e.map("minimum", e.map("sub", e.size(size), before), e.constant(axis.pool, "int64"))
        total = e.map("mul", e.reshape(total, (product(e.shape(total)), ONE)), e.reshape(own, (ONE, count)))
    return e.map("cast", e.reshape(total, (ONE, product(cells), ONE)), dtype=dtype)
