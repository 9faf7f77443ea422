"""Which masks leave sums over keys that do not depend on the query."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewriter.algebra.term import depends_on

if TYPE_CHECKING:
    from rewriter.sites.site import AttentionSite

__all__ = ["why_no_sums"]


def why_no_sums(site: AttentionSite) -> str | None:
    """Return the sentence why keys cannot be summed for all queries, or for all later ones, or None.

    They can where nothing is hidden, where a query sees the keys up to its own position, and where what is
    added to the scores depends on keys only.
    """
    return _why_no_band(site) or _why_no_weight(site)


def _why_no_band(site: AttentionSite) -> str | None:
    band = site.facts.band
    if band is None:
        return None
    if band.left is not None or band.right != 0:
        return (
            f"{site.id} lets a query see a window of keys; what is summed once cannot be taken out again:"
            " use window"
        )
    if not (band.offset.at_least(0) and (site.keys - site.queries - band.offset).at_least(0)):
        return f"{site.id}: query 0 stands at key {band.offset}, not proved to lie among {site.keys} keys"
    return None


def _why_no_weight(site: AttentionSite) -> str | None:
    """Return why the bias is no factor of each key."""
    if site.facts.dense or site.facts.only_band:
        return None
    rest, queries = site.formula.rest, {p for a in site.formula.axes.queries for p in a.parts()}
    if rest is None or not depends_on(rest) & queries:
        return None
    if site.facts.key_padding and not site.facts.bias and not site.facts.unknown:
        return None
    return (
        f"{site.id}: what is added to its scores ({site.facts.mask}) depends on the query too, so it is no"
        " factor of a key"
    )
