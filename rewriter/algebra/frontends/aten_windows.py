"""aten operators that read overlapping windows: every entry of a window is a place that is counted."""

from __future__ import annotations

from collections.abc import Sequence

from rewriter.algebra.frontends.aten_scope import Call, Handler, Result
from rewriter.algebra.frontends.aten_views import padded
from rewriter.algebra.prims import Prim, gather, iota, permute, pointwise, reshape, slice_, unsqueeze
from rewriter.algebra.sizes import ONE, Size

__all__ = ["WINDOWS"]


def _unfold(call: Call) -> Result:
    """Windows along an axis, their entries along a new last one."""
    x, size, step = call.tensor(0), call.size(call.arg(2)), call.size(call.arg(3))
    axis = call.axis(1, len(x.shape))
    starts = unsqueeze(iota(call.shape[axis], step=step), 1)
    read = gather(x, pointwise("add", starts, iota(size)), axis)
    rank = len(x.shape) + 1
    return permute(read, [*(k for k in range(rank) if k != axis + 1), axis + 1])


def _im2col(call: Call) -> Result:
    """Windows of an image as columns: channel, row and column in the window; then its place."""
    x = call.tensor(0)
    sizes, dilation, padding, step = (_pair(call.arg(k)) for k in range(1, 5))
    rank = len(x.shape)
    for k in (0, 1):
        x = padded(x, rank - 2 + k, Size.of(padding[k]), Size.of(padding[k]), call.scalar(0)) or x
    counts = [_count(x.shape[rank - 2 + k], sizes[k], dilation[k], step[k]) for k in (0, 1)]
    for k in (1, 0):
        if counts[k] is None:
            return None
        x = _taps(x, rank - 2 + k, sizes[k], dilation[k], counts[k], step[k])
    lead = len(x.shape) - 4  # then rows in the window and of windows, and columns likewise
    return reshape(permute(x, [*range(lead), lead, lead + 2, lead + 1, lead + 3]), call.shape)


def _pair(arg: int | Sequence[int]) -> Sequence[int]:
    return (arg, arg) if isinstance(arg, int) else (arg[0], arg[-1])


def _count(n: Size, size: int, dilation: int, step: int) -> Size | None:
    """Return how many windows fit, where that is a polynomial."""
    last = n - 1 - dilation * (size - 1)
    if last.static:
        return Size.of(int(last) // step + 1)
    return last + 1 if step == 1 else None


def _taps(x: Prim, axis: int, size: int, dilation: int, count: Size | None, step: int) -> Prim:
    """Split an axis in two: places in the window, and windows."""
    assert count is not None
    if size == 1:
        return unsqueeze(slice_(x, axis, 0, count, step), axis)
    if count == ONE:
        return unsqueeze(slice_(x, axis, 0, size, dilation), axis + 1)
    taps = unsqueeze(iota(size, step=dilation), 1)
    return gather(x, pointwise("add", taps, iota(count, step=step)), axis)


WINDOWS: dict[str, Handler] = {"unfold": _unfold, "im2col": _im2col}
"""Translations by operator name."""
