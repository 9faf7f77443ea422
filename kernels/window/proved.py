"""Which window the mask of a site is proved to be, and whether a window holds all that a mask shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rewriter.algebra.sizes import ZERO
from rewriter.kernels.window.axes import AxisWindow
from rewriter.kernels.window.per_axis import joined
from rewriter.sites.patterns import Band, Blocks, GridAxis, Neighbourhood
from rewriter.sites.site import AttentionSite

__all__ = ["holds_the_mask", "repeats_the_blocks", "window_of"]


LONGEST = 1 << 11
"""Blocks and strides whose repetition on a sequence of unknown length is looked at."""


def window_of(site: AttentionSite) -> dict[str, Any] | None:
    """Return parameters of the smallest window that holds all keys that the site's mask shows, or None.

    A neighbourhood on a grid, blocks, segments of known lengths, or a band that is bounded behind and, at
    sites that are not causal, ahead: the first of these that is proved.
    """
    facts = site.facts
    if facts.neighbourhood is not None:
        return _of_neighbourhood(facts.neighbourhood)
    if facts.blocks is not None:
        return _of_blocks(facts.blocks)
    if facts.segments is not None and facts.segments.lengths is not None:
        return _of_segments(facts.segments.lengths)
    return None if facts.band is None else _of_band(facts.band)


def holds_the_mask(axes: Sequence[AxisWindow], site: AttentionSite) -> bool:
    """Whether the windows are proved to hold every key that the site's mask lets a query see.

    That is so for a neighbourhood on a grid of these sizes, and on one axis for blocks, for segments of
    known lengths and for keys at a multiple of some distance.
    """
    facts = site.facts
    if facts.neighbourhood is not None:
        own = facts.neighbourhood.axes
        if [a.size and a.size.known() for a in own] == [a.size for a in axes]:
            return all(_holds_axis(a, fact) for a, fact in zip(axes, own, strict=True))
    if len(axes) != 1:
        return False
    (axis,) = axes
    return _holds_blocks(axis, facts.blocks) or _holds_segments(axis, site) or _holds_stride(axis, site)


def repeats_the_blocks(axis: AxisWindow, site: AttentionSite) -> bool:
    """Whether a window along a sequence of any length is proved to hold the blocks of the mask."""
    size = site.facts.blocks.size.known() if site.facts.blocks is not None else None
    if size is None or not 0 < size <= LONGEST or axis.stride > LONGEST:
        return False
    # both repeat after their common multiple, and no block or window is cut off in the middle
    line = 2 * (math.lcm(size, axis.stride) + max(size, axis.window) * axis.dilation)
    return holds_the_mask([replace(axis, size=line, hidden=0)], site)


def _of_band(band: Band) -> dict[str, Any] | None:
    if band.left is None or band.right is None:
        return None
    return {"window": band.left + 1 if band.causal else 2 * max(band.left, band.right) + 1}


def _of_blocks(blocks: Blocks) -> dict[str, Any] | None:
    size, queries, keys = blocks.size.known(), blocks.queries.known(), blocks.keys.known()
    if size is None or queries is None or keys is None or (queries - keys) % size:
        return None
    return {"window": size, "stride": size, "offset": queries % size or None}


def _of_segments(lengths: tuple[int, ...]) -> dict[str, Any]:
    """Return blocks, of which the first and the last may be shorter; else a window as wide as the longest."""
    size = max(lengths)
    if set(lengths[1:-1]) <= {size}:
        return {"window": size, "stride": size, "offset": size - lengths[0] or None}
    return {"window": 2 * size - 1}


def _of_neighbourhood(fact: Neighbourhood) -> dict[str, Any] | None:
    sizes = [axis.size.known() if axis.size is not None else None for axis in fact.axes]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return None
    moved = all(axis.clamped for axis in fact.axes if axis.bounded)
    windows = tuple(_reach(axis, size, moved) for axis, size in zip(fact.axes, known, strict=True))
    dilations = tuple(axis.dilation for axis in fact.axes)
    found: dict[str, Any] = {"window": joined(windows)}
    if len(known) > 1:
        found["grid"] = joined(tuple(known))
    if max(dilations) > 1:
        found["dilation"] = joined(dilations)
    return {**found, "borders": "shift"} if moved else found


def _reach(axis: GridAxis, size: int, moved: bool) -> int:
    """Return the size of a symmetric window, in ranks of a class, that holds what an axis allows."""
    if not axis.bounded:
        return 2 * size - 1
    left, right = _sides(axis, size)
    if moved:
        return left // axis.dilation + right // axis.dilation + 1
    far = left + right if axis.clamped else max(left, right)
    return far // axis.dilation * 2 + 1


def _sides(axis: GridAxis, size: int) -> tuple[int, int]:
    """Return how far an axis lets a query see on either side; all of it where that is unbounded."""
    return (size if axis.left is None else axis.left), (size if axis.right is None else axis.right)


def _holds_axis(axis: AxisWindow, fact: GridAxis) -> bool:
    left, right = _sides(fact, axis.size)
    at = axis.positions
    low, high = at - left, at + right
    if fact.clamped:
        step = fact.dilation
        place = at % step
        last = place + (axis.size - 1 - place) // step * step
        low = np.maximum(np.minimum(low, last - left - right), place)
        high = low + left + right
    return axis.contains(low, high, fact.dilation)


def _holds_blocks(axis: AxisWindow, blocks: Blocks | None) -> bool:
    if blocks is None:
        return False
    size, queries, keys = blocks.size.known(), blocks.queries.known(), blocks.keys.known()
    if size is None or queries is None or keys is None:
        return False
    low = (np.arange(axis.count) + queries) // size * size - keys
    return axis.contains(low, low + size - 1)


def _holds_segments(axis: AxisWindow, site: AttentionSite) -> bool:
    lengths = site.facts.segments.lengths if site.facts.segments is not None else None
    if lengths is None or sum(lengths) != axis.size or axis.start or axis.count != axis.size:
        return False
    ends = np.cumsum(lengths)
    last = np.repeat(ends - 1, lengths)
    return axis.contains(np.repeat(ends - np.asarray(lengths), lengths), last)


def _holds_stride(axis: AxisWindow, site: AttentionSite) -> bool:
    fact = site.facts.stride
    if fact is None or fact.step.known() is None or fact.offset != ZERO or axis.start:
        return False
    at = axis.positions
    return axis.contains(np.zeros_like(at), np.full_like(at, axis.size - 1), int(fact.step))
