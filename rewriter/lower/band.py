"""A proved band as a mask."""

from __future__ import annotations

import math

from rewriter.algebra.sizes import ZERO, Size
from rewriter.lower.emitter import Emitter, Handle
from rewriter.sites.site import Band

__all__ = ["emit_band"]


def emit_band(e: Emitter, band: Band, queries: Handle, keys: Handle, dtype: str) -> Handle:
    """Emit 0 where the band lets a query see a key, else -inf.

    Parameters
    ----------
    e
        Target.
    band
        What is visible.
    queries, keys
        Indices ``[…, I]`` and ``[J]``.
    dtype
        Of the result, ``[…, I, J]``.
    """
    lead = e.shape(queries)
    ahead = e.map("sub", keys, e.reshape(queries, (*lead, Size.of(1))))
    if band.offset != ZERO:
        ahead = e.map("sub", ahead, e.size(band.offset))
    mask = e.constant(0.0, dtype)
    hidden = e.constant(-math.inf, dtype)
    if band.right is not None:
        mask = e.map("where", e.map("le", ahead, e.constant(band.right, "int64")), mask, hidden)
    if band.left is not None:
        mask = e.map("where", e.map("ge", ahead, e.constant(-band.left, "int64")), mask, hidden)
    shape = (*lead, *e.shape(keys))
    return mask if e.shape(mask) == shape else e.expand(mask, shape)
