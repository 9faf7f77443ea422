"""Token merging by its definition: dense, plain, in float32 or wider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rewriter.kernels.softmax.definition import Operands, attend, zero_where_blind

__all__ = ["LEAST", "Matching", "match", "merge_attention", "merged", "unmerged"]

STEPS = 4096
"""Distances are compared in steps of one over this: rounding does not decide between equal tokens.

In single precision that holds for those not much farther from the mean than others: a step is the rounding of
a squared distance of some hundreds, where 2 is the mean one of two traits.
"""


LEAST = 2.0**-14
"""A key that counts less counts for nothing: every precision has this number."""


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


def match(
    traits: Sequence[torch.Tensor], r: int, protect: int = 0, size: torch.Tensor | None = None
) -> Matching:
    """Match tokens in pairs, by bipartite matching for the least growth of variance.

    Tokens after the first ``protect`` are dealt in turn to two sets. Every token of the first set looks for
    the token of the second set that it costs least to join; the ``r`` tokens that it costs least join
    theirs. Of equal costs the one at the lower index wins. The tokens that are left are the protected ones,
    those of the first set that joined none, from the least to the highest cost, and the second set.

    What it costs is by how much the variance within tokens that stand for several grows,
    ``|x - y|² / (1 / m + 1 / n)`` for tokens that stand for ``m`` and ``n``. Every trait has a variance of 1
    over all tokens, so that neither the scale of a trait nor what all tokens share counts.

    Tokens that stand for none join first, no other token looks for them, and their traits do not count.

    Source: Bolya et al., Token Merging: Your ViT But Faster (2023), section 3, for the two sets; Ward,
    Hierarchical Grouping to Optimize an Objective Function (1963), for the cost.

    Parameters
    ----------
    traits
        What tokens are compared by, each ``[B, N, D]``.
    r
        Tokens that join another one. At most as many as the second set has.
    protect
        First tokens that are never merged.
    size
        How many tokens each stands for, ``[B, N]``; None is one.
    """
    batch, tokens, _ = traits[0].shape
    wide = torch.promote_types(traits[0].dtype, torch.float32)
    size = torch.ones(batch, tokens, dtype=wide) if size is None else size.to(wide)
    x = torch.cat([_even(trait.to(wide), size[..., None]) for trait in traits], dim=-1)
    m, n = size[:, protect::2, None], size[:, None, protect + 1 :: 2]
    r = min(r, n.shape[2])
    kept = m.shape[1] - r
    place = torch.arange(tokens).expand(batch, -1).clone()
    place[:, protect + 1 :: 2] = protect + kept + torch.arange(n.shape[2])
    if n.shape[2]:
        apart = torch.cdist(
            x[:, protect::2], x[:, protect + 1 :: 2], compute_mode="donot_use_mm_for_euclid_dist"
        )
        cost = torch.ceil(apart.square() * STEPS - 0.5) * (m * n / (m + n)).nan_to_num()
        cost = cost.masked_fill(n == 0, torch.inf)
        least = cost.amin(dim=-1)
        partner = (cost == least[..., None]).int().argmax(dim=-1)
        least = least.masked_fill(m[..., 0] == 0, -torch.inf)
        rank = least.argsort(dim=-1, stable=True).argsort(dim=-1)
        place[:, protect::2] = protect + torch.where(rank < r, kept + partner, rank - r)
    return Matching(place, tokens - r)


def _even(x: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
    """Return a trait with mean 0 and variance 1 over all tokens; 0 where a token stands for none."""
    x, total = x.masked_fill(size == 0, 0.0), size.sum(dim=1, keepdim=True)
    x = (x - (size * x).sum(dim=1, keepdim=True) / total).masked_fill(size == 0, 0.0)
    x = x / x.abs().amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
    variance = (size * x.square()).sum(dim=(1, 2), keepdim=True) / total
    return (x / variance.sqrt().clamp(min=torch.finfo(x.dtype).tiny)).nan_to_num()


def merged(x: torch.Tensor, size: torch.Tensor, matching: Matching) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean of the tokens that become one, weighted by their sizes, and the sum of their sizes.

    The mean of tokens that count for nothing is 0, and what stands there changes no other.

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
    sums = torch.einsum("bnm,bnc->bmc", joins, x.masked_fill(size[..., None] == 0, 0.0))
    return sums / total.clamp(min=torch.finfo(x.dtype).tiny)[..., None], total


def unmerged(x: torch.Tensor, matching: Matching) -> torch.Tensor:
    """Return a token for each of the original ones, ``[B, N, C]``: that which it has become part of."""
    return x.gather(1, matching.place[..., None].expand(-1, -1, x.shape[2]))


def merge_attention(x: Operands, r: int, *, protect: int = 0, of: str = "qkv") -> torch.Tensor:
    """Return attention of merged queries to merged keys, for every query; ``[B, H, I, E]``.

    Tokens are matched by the sum over the heads of their keys and of their queries, as far as these are
    merged. Merged queries, keys and values are means; the logarithm of how many tokens a key stands for is
    added to its scores, so that it counts as often. A key counts ``exp(bias)``, where the largest bias of all
    is 0 if it is above that, and less than `LEAST` is nothing: hidden ones count for nothing, and neither do
    their queries, where there are as many. A query that sees nothing gives 0.

    Parameters
    ----------
    x
        Operands, without a band; the bias is the same for all heads and queries.
    r, protect
        See `match`.
    of
        What is merged: ``qkv`` all of a token, ``kv`` keys and values, ``q`` queries.
    """
    wide = torch.promote_types(x.q.dtype, torch.float32)
    q, k, v = (t.to(wide) for t in (x.q, x.k, x.v))
    counts, top = torch.ones(k.shape[0], k.shape[2], dtype=wide), torch.zeros(1, 1, dtype=wide)
    if x.bias is not None:
        bias = x.bias[:, 0, 0].to(wide)
        top = bias.amax(dim=-1, keepdim=True).clamp(min=0)
        counts = counts * (bias - top).exp()
        counts = counts.masked_fill(counts < LEAST, 0.0)
    if of == "q" and q.shape[2] != k.shape[2]:
        counts = torch.ones(q.shape[0], q.shape[2], dtype=wide)
    matching = match([t.sum(dim=1) for name, t in (("k", k), ("q", q)) if name in of], r, protect, counts)

    def all_heads(t: torch.Tensor) -> torch.Tensor:
        mean, _ = merged(t.transpose(1, 2).flatten(2), counts, matching)
        return _by_heads(mean, t.shape[1])

    few = replace(x, q=all_heads(q) if "q" in of else q, k=k, v=v)
    if of == "q":
        few = replace(few, bias=None if x.bias is None else x.bias[:, :1, :1])
    else:
        total = merged(k[:, 0], counts, matching)[1]
        few = replace(few, k=all_heads(k), v=all_heads(v), bias=(total.log() + top)[:, None, None, :])
    seen = torch.ones(few.q.shape[2], few.k.shape[2], dtype=torch.bool)
    result = zero_where_blind(few, seen, attend(few, seen))
    if "q" not in of:
        return result
    rows = unmerged(result.transpose(1, 2).flatten(2), matching)
    return _by_heads(rows, result.shape[1])


def _by_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    batch, tokens, width = x.shape
    return x.reshape(batch, tokens, heads, width // heads).transpose(1, 2)
