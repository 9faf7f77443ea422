"""Groups of heads that are computed apart: each sees the operands of its own heads only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from rewriter.algebra.sizes import ONE, Size
from rewriter.forms import Canonical, Cost
from rewriter.lower.emitter import Emitter, Handle
from rewriter.lower.heads import for_every_head
from rewriter.sites.site import AttentionSite

if TYPE_CHECKING:
    import torch

    from rewriter.kernels.softmax.definition import Operands

__all__ = ["define_apart", "emit_apart", "sites_apart", "total_cost", "why_not_apart"]


def why_not_apart(site: AttentionSite, count: int) -> str | None:
    """Return why a site has not ``count`` groups of heads, or None."""
    heads = site.heads.known()
    if heads is not None and heads % count == 0:
        return None
    return f"{site.id} has {site.heads} heads, which are not {count} groups of one size"


def sites_apart(site: AttentionSite, count: int) -> AttentionSite:
    """Return the site with the heads of one group, for its cost and what is proved of it."""
    heads, groups = site.heads.divide(count), site.kv_heads.divide(count)
    if heads is None:
        return site
    return replace(site, heads=heads, kv_heads=heads if groups is None else groups)


def emit_apart(e: Emitter, a: Canonical, emits: Sequence[Callable[[Canonical], Handle]]) -> Handle:
    """Emit each group of heads by its own function, and join them; ``[B, H, I, E]``."""
    count = len(emits)
    b, h, g = (a.shape[letter] for letter in "BHG")
    heads, groups = int(h) // count, g.known()
    if groups is None or groups % count:
        k, v = (for_every_head(e, x, b, h, g) for x in (a.k, a.v))
        a = replace(a, k=k, v=v, shape={**a.shape, "G": h})
        groups = int(h)

    def taken(x: Handle | None, at: int, size: int) -> Handle | None:
        return x if x is None or e.shape(x)[1] == ONE else e.slice(x, 1, at * size, size)

    results = []
    for at, emit in enumerate(emits):
        shape = {**a.shape, "H": Size.of(heads), "G": Size.of(groups // count)}
        q, bias, sink = (taken(x, at, heads) for x in (a.q, a.bias, a.sink))
        k, v = (taken(x, at, groups // count) for x in (a.k, a.v))
        results.append(emit(replace(a, q=q, k=k, v=v, bias=bias, sink=sink, shape=shape)))
    return e.concat(results, 1)


def define_apart(x: Operands, defines: Sequence[Callable[[Operands], torch.Tensor]]) -> torch.Tensor:
    """Compute each group of heads by its own definition, and join them; ``[B, H, I, E]``."""
    import torch

    heads = x.q.shape[1]
    k, v = (t.repeat_interleave(heads // t.shape[1], dim=1).chunk(len(defines), dim=1) for t in (x.k, x.v))
    q = x.q.chunk(len(defines), dim=1)
    bias, sink = (
        [None] * len(defines) if t is None else t.expand(-1, heads, -1, -1).chunk(len(defines), dim=1)
        for t in (x.bias, x.sink)
    )
    parts = zip(defines, q, k, v, bias, sink, strict=True)
    return torch.cat(
        [define(replace(x, q=q, k=k, v=v, bias=b, sink=s)) for define, q, k, v, b, s in parts], dim=1
    )


def total_cost(costs: Sequence[Cost]) -> Cost:
    """Return what all groups cost together."""
    times = [cost.time for cost in costs if cost.time is not None]
    flops, moved = (
        sum(sizes[1:], sizes[0]) for sizes in ([c.flops for c in costs], [c.bytes for c in costs])
    )
    time = sum(times[1:], times[0]) if len(times) == len(costs) else None
    return Cost(flops, moved, max(cost.passes for cost in costs), time)
