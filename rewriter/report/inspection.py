"""What ``inspect`` says about a program, as plain values; the keys are a contract."""

from __future__ import annotations

from typing import Any

from rewriter.program.program import Program
from rewriter.sites.refusal import Refusal
from rewriter.sites.site import AttentionSite

__all__ = ["inspection", "refusal_record", "site_record"]


def inspection(program: Program, model: str) -> dict[str, Any]:
    """Return the object that ``rewriter inspect --json`` prints.

    Parameters
    ----------
    program
        What was loaded.
    model
        What the user called it.
    """
    return {
        "model": model,
        "format": program.format,
        "nodes": len(program.graph.nodes),
        "sites": [site_record(site) for site in program.sites],
        "refused": [refusal_record(refusal) for refusal in program.refused],
    }


def site_record(site: AttentionSite) -> dict[str, Any]:
    """Return one entry of ``sites``; symbolic sizes are strings."""
    return {
        "id": site.id,
        "kind": site.kind,
        "heads": site.heads.plain(),
        "kv_heads": site.kv_heads.plain(),
        "query_length": site.queries.plain(),
        "key_length": site.keys.plain(),
        "qk_dim": site.qk_dim.plain(),
        "v_dim": site.v_dim.plain(),
        "normalizer": site.normalizer,
        "scale": site.scale,
        "mask": site.facts.mask,
        "anchor": site.anchor,
        "region_nodes": len(site.region),
    }


def refusal_record(refusal: Refusal) -> dict[str, Any]:
    """Return one entry of ``refused``."""
    return {"anchor": refusal.anchor, "reason": refusal.reason}
