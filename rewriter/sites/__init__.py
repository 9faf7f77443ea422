"""Sites: every place where attention is computed, what is proved of it, and why others are not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewriter.sites.refusal import Refusal
from rewriter.sites.site import AttentionSite, Band, Facts

if TYPE_CHECKING:
    from rewriter.program.program import Program

__all__ = ["AttentionSite", "Band", "Facts", "Refusal", "raise_sites"]


def raise_sites(program: Program) -> tuple[tuple[AttentionSite, ...], tuple[Refusal, ...]]:
    """Return the sites of a program, each checked numerically, and its near-misses."""
    from dataclasses import replace

    from rewriter.sites.check import check_site
    from rewriter.sites.recognise import recognise

    sites, refusals = recognise(program.graph, program.prims())
    verdicts: dict[str, str | None] = {}
    kept: list[AttentionSite] = []
    failed = list(refusals)
    for site in sites:
        if site.signature not in verdicts:
            verdicts[site.signature] = check_site(program, site)
        reason = verdicts[site.signature]
        if reason is None:
            id_ = f"{site.kind}.{len(kept)}"
            kept.append(site if site.id == id_ else replace(site, id=id_))
        else:
            failed.append(Refusal(site.anchor, reason, None, site.kind, "check"))
    return tuple(kept), tuple(failed)
