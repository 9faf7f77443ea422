"""Token merging by its definition: dense, plain, in float32 or wider."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from rewriter.kernels.softmax.definition import Operands, attend, zero_where_blind

__all__ = ["Matching", "match", "merge_attention", "merged", "unmerged"]

STEPS = 4096
"""Similarities are compared in steps of one over this: rounding does not decide between equal tokens."""


@dataclass(frozen=True, eq=False)
class Matching:
    """Which of ``N`` tokens become one.

    Parameters
    ----------
    place
        Place of every token among those that are left, ``[B, N]``.
    left
        How many are left.
    """

    place: torch.Tensor
    left: int


def match(metric: torch.Tensor, r: int, protect: int = 0, counts: torch.Tensor | None = None) -> Matching:
    """Match tokens in pairs, by bipartite soft matching.

    Tokens after the first ``protect`` are dealt in turn to two sets. Every token of the first set looks for
    the token of the second set whose metric has the largest cosine with its own; the ``r`` tokens with the
    largest cosines join theirs. Of equal cosines the one at the lower index wins. The tokens that are left
    are the protected ones, those of the first set that joined none, from the most to the least similar, and
    the second set.

    Tokens that count for nothing join first, and no other token looks for them.

    Source: Bolya et al., Token Merging: Your ViT But Faster (2023), section 3.

    Parameters
    ----------
    metric
        What tokens are compared by, ``[B, N, D]``.
    r
        Tokens that join another one. At most as many as the second set has.
    protect
        First tokens that are never merged.
    counts
        How often each token counts, ``[B, N]``; None is once.
    """
    tokens = metric.shape[1]
    unit = torch.nn.functional.normalize(metric.to(torch.promote_types(metric.dtype, torch.float32)), dim=-1)
    first, second = unit[:, protect::2], unit[:, protect + 1 :: 2]
    r = min(r, second.shape[1])
    kept = first.shape[1] - r
    place = torch.arange(tokens).expand(len(unit), -1).clone()
    place[:, protect + 1 :: 2] = protect + kept + torch.arange(second.shape[1])
    if second.shape[1]:
        cosines = torch.floor(first @ second.mT * STEPS + 0.5)
        nothing = None if counts is None else counts == 0
        if nothing is not None:
            cosines = cosines.masked_fill(nothing[:, None, protect + 1 :: 2], -torch.inf)
        best = cosines.amax(dim=-1)
        partner = (cosines == best[..., None]).int().argmax(dim=-1)
        if nothing is not None:
            best = best.masked_fill(nothing[:, protect::2], torch.inf)
        rank = best.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        place[:, protect::2] = protect + torch.where(rank < r, kept + partner, rank - r)
    return Matching(place, tokens - r)


def merged(x: torch.Tensor, size: torch.Tensor, matching: Matching) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean of the tokens that become one, weighted by their sizes, and the sum of their sizes.

    The mean of tokens that count for nothing is 0.

    Parameters
    ----------
    x
        ``[B, N, C]``.
    size
        How many tokens each stands for, ``[B, N]``.
    matching
        Which become one.
    """
    joins = torch.nn.functional.one_hot(matching.place, matching.left).to(x.dtype) * size[..., None]
    total = joins.sum(dim=1)
    return torch.einsum("bnm,bnc->bmc", joins, x) / total.clamp(min=torch.finfo(x.dtype).tiny)[
        ..., None
    ], total


def unmerged(x: torch.Tensor, matching: Matching) -> torch.Tensor:
    """Return a token for each of the original ones, ``[B, N, C]``: that which it has become part of."""
    return x.gather(1, matching.place[..., None].expand(-1, -1, x.shape[2]))


def merge_attention(x: Operands, r: int, *, protect: int = 0, queries: bool = True) -> torch.Tensor:
    """Return attention of merged queries to merged keys, for every query; ``[B, H, I, E]``.

    Tokens are matched by the mean of their keys over the heads. Merged keys and values are means; the
    logarithm of how many tokens a key stands for is added to its scores, so that it counts as often. A key
    counts ``exp(bias)``: hidden ones count for nothing. A query that sees nothing gives 0.

    Parameters
    ----------
    x
        Operands, without a band; the bias is the same for all heads and queries.
    r, protect
        See `match`.
    queries
        Whether queries are merged as their keys are; otherwise each asks by itself.
    """
    wide = torch.promote_types(x.q.dtype, torch.float32)
    q, k, v = (t.to(wide) for t in (x.q, x.k, x.v))
    counts = torch.ones(k.shape[0], k.shape[2], dtype=wide)
    if x.bias is not None:
        counts = counts * x.bias[:, 0, 0].to(wide).exp()
    matching = match(k.mean(dim=1), r, protect, counts)

    def all_heads(t: torch.Tensor) -> torch.Tensor:
        mean, _ = merged(t.transpose(1, 2).flatten(2), counts, matching)
        return _by_heads(mean, t.shape[1])

    total = merged(k[:, 0], counts, matching)[1]
    few = replace(x, q=all_heads(q) if queries else q, k=all_heads(k), v=all_heads(v))
    few = replace(few, bias=total.log()[:, None, None, :])
    seen = torch.ones(few.q.shape[2], matching.left, dtype=torch.bool)
    result = zero_where_blind(few, seen, attend(few, seen))
    if not queries:
        return result
    rows = unmerged(result.transpose(1, 2).flatten(2), matching)
    return _by_heads(rows, result.shape[1])


def _by_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    batch, tokens, width = x.shape
    return x.reshape(batch, tokens, heads, width // heads).transpose(1, 2)
