"""How softmax attention is emitted: one fused call, with whatever the band says as a flag or a mask."""

from __future__ import annotations

import math

from rewriter.algebra.sizes import ZERO, Size
from rewriter.forms import Canonical
from rewriter.lower.emitter import Emitter, EmptyRow, Handle
from rewriter.sites.site import Band

__all__ = ["emit_band", "emit_dense"]


def emit_dense(e: Emitter, a: Canonical, empty_row: EmptyRow | None = None) -> Handle:
    """Emit attention of every query to every key that bias and band let it see; ``[B, H, I, E]``."""
    causal = a.band is not None and a.band == Band(ZERO, None, 0)
    bias = a.bias
    if a.band is not None and not causal:
        mask = emit_band(e, a.band, e.iota(a.shape["I"]), e.iota(a.shape["J"]), e.dtype(a.q))
        mask = e.reshape(mask, (1, 1, a.shape["I"], a.shape["J"]))
        bias = mask if bias is None else e.map("add", bias, mask)
    return e.attention(
        a.q,
        a.k,
        a.v,
        scale=a.scale,
        bias=bias,
        causal=causal,
        empty_row=a.empty_row if empty_row is None else empty_row,
        softcap=a.softcap,
        sink=a.sink,
    )


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
