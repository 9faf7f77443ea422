"""aten operators that pool windows, where every window is a whole axis: means and maxima over axes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from rewriter.algebra.frontends.aten_scope import Call, Handler, Result
from rewriter.algebra.prims import Prim, reduce, sum_
from rewriter.algebra.sizes import ONE, Size

__all__ = ["POOLS"]


def _adaptive(fn: str, rank: int, call: Call) -> Result:
    """Pool to a given size: 1, or the size that an axis has."""
    x = call.tensor(0)
    wanted = [call.size(n) for n in _each(call.arg(1), rank)]
    return _pooled(fn, x, wanted)


def _windows(fn: str, rank: int, call: Call) -> Result:
    """Pool windows that are as long as an axis, or of one place each."""
    x = call.tensor(0)
    kernel = [Size.of(n) for n in _each(call.arg(1), rank)]
    strides = _each(call.arg(2, "stride") or call.arg(1), rank)
    if any(_each(call.arg(3, "padding", 0), rank)) or (fn == "mean" and call.arg(6, "divisor_override")):
        return None
    if fn == "max" and any(n != 1 for n in _each(call.arg(4, "dilation", 1), rank)):
        return None
    sizes = x.shape[-rank:]
    found = zip(sizes, kernel, strides, strict=True)
    left = [ONE if k == n else n if k == ONE == Size.of(step) else None for n, k, step in found]
    return _pooled(fn, x, left)


def _pooled(fn: str, x: Prim, left: Sequence[Size | None]) -> Result:
    """Return what is left of each of the last axes: one place, or all of them."""
    first = len(x.shape) - len(left)
    axes = []
    for k, n in enumerate(left, first):
        if n == ONE:
            axes.append(k)
        elif n is None or n != x.shape[k]:
            return None
    if not axes:
        return None
    return sum_(x, axes, keepdim=True, mean=True) if fn == "mean" else reduce(fn, x, axes, keepdim=True)


def _with_places(handler: Handler, call: Call) -> Result:
    found = handler(call)
    return [found, None] if isinstance(found, Prim) else None


def _each(setting: Any, rank: int) -> list[Any]:
    """Return one entry per axis; a list of one is for all of them."""
    found = list(setting) if isinstance(setting, list | tuple) else [setting]
    return found * rank if len(found) == 1 else found


def _of_rank(rank: int) -> dict[str, Handler]:
    largest = partial(_windows, "max", rank)
    return {
        f"adaptive_avg_pool{rank}d": partial(_adaptive, "mean", rank),
        f"_adaptive_avg_pool{rank}d": partial(_adaptive, "mean", rank),
        f"adaptive_max_pool{rank}d": partial(_with_places, partial(_adaptive, "max", rank)),
        f"avg_pool{rank}d": partial(_windows, "mean", rank),
        f"max_pool{rank}d": largest,
        f"max_pool{rank}d_with_indices": partial(_with_places, largest),
    }


POOLS: dict[str, Handler] = {name: handler for rank in (1, 2, 3) for name, handler in _of_rank(rank).items()}
"""Translations by operator name."""
