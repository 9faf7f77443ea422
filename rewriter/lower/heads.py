"""Heads that share keys and values."""

from __future__ import annotations

from rewriter.algebra.sizes import ONE, Size
from rewriter.lower.emitter import Emitter, Handle
from rewriter.lower.errors import EmitError

__all__ = ["for_every_head"]


def for_every_head(e: Emitter, x: Handle, batch: Size, heads: Size, kv_heads: Size) -> Handle:
    """Emit ``[B, H, J, D]`` of ``[B or 1, G or 1, J, D]``: head ``h`` reads head ``h // (H // G)``.

    Raises
    ------
    EmitError
        If the heads are no multiple of those that they share.
    """
    known, lead, length, size = e.shape(x)
    groups = heads.divide(kv_heads)
    if groups is None:
        raise EmitError(f"{heads} heads are no multiple of {kv_heads}")
    if lead == kv_heads != ONE and groups != ONE:
        x = e.reshape(x, (known, lead, ONE, length, size))
        x = e.reshape(e.expand(x, (known, lead, groups, length, size)), (known, heads, length, size))
    wanted = (batch, heads, length, size)
    return x if tuple(e.shape(x)) == wanted else e.expand(x, wanted)
