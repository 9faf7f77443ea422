"""What ``inspect`` says about a program, as plain values; the keys are a contract."""

from __future__ import annotations

from typing import Any

from rewriter.blocks.block import Block, NearMiss
from rewriter.blocks.fusion import Fusion
from rewriter.program.program import Program
from rewriter.sites.refusal import Refusal
from rewriter.sites.site import AttentionSite

__all__ = [
    "block_record",
    "coverage",
    "fusion_record",
    "inspection",
    "near_miss_record",
    "refusal_record",
    "site_record",
]


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
        "coverage": coverage(program),
        "sites": [site_record(site) for site in program.sites],
        "refused": [
            *(refusal_record(refusal) for refusal in program.refused),
            *(near_miss_record(miss) for miss in program.refused_blocks),
        ],
        "blocks": [block_record(block) for block in program.blocks],
        "fusion": fusion_record(program.fusion),
    }


def coverage(program: Program) -> float | None:
    """Return how much of what may be attention became a site, in percent; None where there is nothing.

    Near-misses that are something else do not count; see `Refusal.missed`.
    """
    found = len(program.sites)
    missed = sum(refusal.missed for refusal in program.refused)
    return 100 * found / (found + missed) if found + missed else None


def site_record(site: AttentionSite) -> dict[str, Any]:
    """Return one entry of ``sites``; symbolic sizes are strings, what is unknown is None."""
    grid, prefix = (site.geometry.grid, site.geometry.prefix) if site.geometry else (None, None)
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
        "traits": list(site.traits),
        "constant": list(site.constant),
        "empty_row": site.empty_row,
        "grid": None if grid is None else [size.plain() for size in grid],
        "prefix_tokens": prefix,
        "consumers": [{"value": value, "reader": reader} for value, reader in site.consumers],
    }


def near_miss_record(miss: NearMiss) -> dict[str, Any]:
    """Return one entry of ``refused`` for what reads like a gate."""
    return {
        "anchor": miss.output,
        "reason": miss.reason,
        "nearest": "gate",
        "reached": "sources",
        "at": None,
        "missed": False,
    }


def block_record(block: Block) -> dict[str, Any]:
    """Return one entry of ``blocks``: a gate or a fusion block."""
    return {
        "id": block.id,
        "kind": block.kind,
        "mechanism": block.mechanism,
        "output": block.output,
        "sources": list(block.sources),
        "shape": [size.plain() for size in block.shape],
        "axes": list(block.axes),
        "traits": list(block.traits),
        "nodes": block.nodes,
    }


def fusion_record(fusion: Fusion) -> dict[str, Any]:
    """Return ``fusion``: how the streams of a model meet in its attention."""
    return {
        "streams": list(fusion.streams),
        "topology": fusion.topology,
        "links": [
            {"kind": n.kind, "sites": list(n.sites), "output": n.output, "streams": list(n.streams)}
            for n in fusion.links
        ],
    }


def refusal_record(refusal: Refusal) -> dict[str, Any]:
    """Return one entry of ``refused``."""
    return {
        "anchor": refusal.anchor,
        "reason": refusal.reason,
        "nearest": refusal.nearest,
        "reached": refusal.reached,
        "at": refusal.at,
        "missed": refusal.missed,
    }
