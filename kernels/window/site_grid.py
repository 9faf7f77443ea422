"""The grid of a site's tokens: what the graph shows of it, and why a grid that is asked for does not fit."""

from __future__ import annotations

from rewriter.kernels.window.per_axis import joined, sides
from rewriter.sites.site import AttentionSite

__all__ = ["shown_grid", "why_no_grid"]


def shown_grid(site: AttentionSite) -> tuple[tuple[int, ...], int] | None:
    """Return the known sizes of the axes and the number of tokens before them, as the graph shows them."""
    shown = site.geometry
    if shown is None or shown.grid is None or shown.prefix is None or site.queries != site.keys:
        return None
    known = tuple(n for n in (size.known() for size in shown.grid) if n is not None)
    return (known, shown.prefix) if len(known) == len(shown.grid) else None


def why_no_grid(site: AttentionSite, grid: str, sinks: int) -> str | None:
    """Return the sentence why a site's tokens after the first ``sinks`` are not the grid, or None.

    Parameters
    ----------
    site
        Where.
    grid
        ``HxW``, ``TxHxW`` or ``auto``.
    sinks
        Number of tokens before it.
    """
    if site.facts.band is not None:
        return f"{site.id} is causal or windowed along its sequence; a grid needs a site without such a mask"
    if site.queries != site.keys:
        return (
            f"{site.id} has {site.queries} queries and {site.keys} keys, as in cross-attention; a grid needs"
            " one number for both"
        )
    tokens = site.keys.known()
    if tokens is None:
        return (
            f"{site.id} has {site.keys} tokens; a grid needs a known number (fix the input size when tracing"
            " or exporting)"
        )
    found, shown = sides(grid, tokens, sinks), shown_grid(site)
    if found is None:
        shape = "a square" if grid == "auto" else grid
        return (
            f"{site.id} has {tokens} tokens: {tokens - sinks} after {sinks} sinks, which is not {shape}; set"
            " sinks to the number of tokens before the grid, and grid=HxW"
        )
    if shown is not None and shown != (found, sinks):
        return (
            f"{site.id}: the graph shows a grid of {joined(shown[0])} after {shown[1]} tokens, not"
            f" {joined(found)} after {sinks}; set grid=auto"
        )
    return None
