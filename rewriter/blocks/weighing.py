"""Emitting a weighted sum of maps in as few passes over them as a target allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle

__all__ = ["between", "places", "weighed"]


def between(e: Emitter, y: Handle, x: Handle, w: Handle) -> Handle | None:
    """Return ``y + w · (x - y)`` in one pass, or None where the target has no operator for it."""
    return e.standard("lerp", y, x, w)


def weighed(e: Emitter, maps: Sequence[Handle], weights: Sequence[Handle]) -> Handle:
    """Return the sum of ``maps[k] · weights[k]``."""
    total = e.map("mul", maps[0], weights[0])
    for x, w in zip(maps[1:], weights[1:], strict=True):
        added = e.standard("addcmul", total, x, w)
        total = e.map("add", total, e.map("mul", x, w)) if added is None else added
    return total


def places(e: Emitter, x: Handle) -> list[Handle]:
    """Return what a tensor holds at each place of its first axis."""
    return [e.select(x, 0, k) for k in range(int(e.shape(x)[0]))]
