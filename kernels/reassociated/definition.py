"""Attention whose weights are the products of queries and keys, by its definition."""

from __future__ import annotations

import torch

from rewriter.kernels.softmax.definition import Operands, band_mask

__all__ = ["product_attention"]


def product_attention(x: Operands) -> torch.Tensor:
    """Return attention without a softmax, ``[B, H, I, E]`` in float32 or wider.

    The weight of a key is its product with the query times the scale, plus the shift, 0 where the band hides
    it; with the normaliser ``sum`` it is divided by the sum of the weights over the keys. Weights come first,
    values after.

    Parameters
    ----------
    x
        Operands without bias, soft cap and sinks.
    """
    wide = torch.promote_types(x.q.dtype, torch.float32)
    share = x.q.shape[1] // x.k.shape[1]
    k, v = (t.to(wide).repeat_interleave(share, dim=1) for t in (x.k, x.v))
    weights = x.scale * torch.einsum("bhif,bhjf->bhij", x.q.to(wide), k) + x.shift
    weights = weights * band_mask(x.band, x.q.shape[2], x.k.shape[2]).to(weights)
    if x.normalizer == "sum":
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return torch.einsum("bhij,bhje->bhie", weights, v)
