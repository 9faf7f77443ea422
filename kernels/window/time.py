"""How long attention in tiles takes; see `rewriter.kernels.softmax.time`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewriter.algebra.sizes import Size
from rewriter.kernels.softmax.time import attention_time, copy_time

if TYPE_CHECKING:
    from rewriter.sites.site import AttentionSite

__all__ = ["masked_time", "tiles_time"]


def tiles_time(
    site: AttentionSite, count: int, length: int, keys: int, first: int = 0, masked: bool = True
) -> Size:
    """Return the time of tiles that gather their keys.

    Parameters
    ----------
    site
        Of known lengths.
    count, length, keys
        Number of tiles, and how many queries and keys each has.
    first
        Queries that meet every key by themselves.
    masked
        Each query of each tile has a mask of its own.
    """
    heads, width = site.batch * site.heads, site.qk_dim + site.v_dim
    gathered = site.batch * site.kv_heads * count * keys * width
    # queries are dealt to the tiles, results put together and in order; a mask is made in three steps
    copied = gathered + heads * site.queries * (width + site.v_dim) + 3 * masked * count * length * keys
    time = attention_time(heads * count, length, keys, width) + copy_time(copied, calls=30)
    return time + attention_time(heads, first, site.keys, width) if first else time


def masked_time(site: AttentionSite, of_axes: bool) -> Size:
    """Return the time of attention to all keys with a mask that is made for it.

    Of a grid the masks along its axes are kept, and one is added to the other.
    """
    every = attention_time(site.batch * site.heads, site.queries, site.keys, site.qk_dim + site.v_dim)
    steps, calls = (2, 7) if of_axes else (3, 15)
    return every + copy_time(steps * site.queries * site.keys, calls=calls)
