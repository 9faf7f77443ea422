"""Which masks leave sums over keys that do not depend on the query."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    facts = site.facts
    if facts.dense or facts.only_band or facts.by_keys:
        return None
    if facts.key_padding and not facts.bias and not facts.unknown:
        return None
    return (
        f"{site.id}: what is added to its scores ({site.facts.mask}) is not proved to be the same for every"
        " query, so it is no factor of a key"
    )
