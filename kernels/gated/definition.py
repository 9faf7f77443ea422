"""Gated attention by its definition: dense, plain, in float32 or wider."""

from __future__ import annotations

import torch

from rewriter.kernels.softmax.definition import Operands, band_mask, softmax_attention, zero_where_blind

__all__ = ["gated_attention"]


def gated_attention(
    x: Operands, *, weight: torch.Tensor | None = None, bias: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """Return ``sigmoid(weight[h] · q[b, h, i] + bias[h])`` times softmax attention, ``[B, H, I, E]``.

    A query that sees no key gives 0. The gate of the paper reads the features of the token that belong to the
    head; here it reads what the site reads of the token: the query of the head, before it is scaled.

    Parameters
    ----------
    x
        Operands; the band is applied.
    weight
        ``[H, D]``, or None: the gate is the same for every query.
    bias
        ``[H]``, or one number for all heads; infinity is an open gate.

    References
    ----------
    Bondarenko, Nagel, Blankevoort: Quantizable Transformers, arXiv:2306.12929, equations 5 and 6.

    Examples
    --------
    >>> q, k, v = torch.ones(1, 2, 1, 4), torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 5)
    >>> gated_attention(Operands(q, k, v), bias=torch.tensor([torch.inf, 0.0]))[0, :, 0, 0]
    tensor([1.0000, 0.5000])
    """
    wide = torch.promote_types(x.q.dtype, torch.float32)
    heads = x.q.shape[1]
    level = torch.as_tensor(bias, dtype=wide, device=x.q.device).expand(heads).reshape(heads, 1)
    if weight is not None:
        level = level + torch.einsum("bhid,hd->bhi", x.q.to(wide), weight.to(x.q.device, wide))
    seen = band_mask(x.band, x.q.shape[2], x.k.shape[2])
    return zero_where_blind(x, seen, level.sigmoid()[..., None] * softmax_attention(x))
