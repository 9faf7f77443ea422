"""Attention by a clipped softmax, by its definition: dense, plain, in float32 or wider."""

from __future__ import annotations

from typing import Any

import torch

from rewriter.kernels.softmax.definition import (
    Operands,
    attention_weights,
    band_mask,
    operands_of,
    times_values,
    zero_where_blind,
)

__all__ = ["by_settings", "clipped_attention"]


def clipped_attention(x: Operands, *, zeta: float, gamma: float) -> torch.Tensor:
    """Return ``clip((zeta - gamma) · softmax(scores) + gamma, 0, 1) v``, ``[B, H, I, E]``.

    The softmax is that of `rewriter.kernels.softmax.definition.attention_weights`. A hidden key has weight 0
    before the clip and after it. A query that sees no key gives 0.

    Parameters
    ----------
    x
        Operands; the band is applied.
    zeta
        Where a weight of 1 is stretched to, 1 or more.
    gamma
        Where a weight of 0 is stretched to, 0 or less.

    References
    ----------
    Bondarenko, Nagel, Blankevoort: Quantizable Transformers, arXiv:2306.12929, equation 4.

    Examples
    --------
    Of two keys with weights 0.8 and 0.2, the second is cut off and the first keeps 1.25 · 0.8 - 0.25:

    >>> logits = torch.tensor([0.8, 0.2]).log().reshape(1, 1, 1, 2)
    >>> q, k, v = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 2, 4), torch.eye(2).reshape(1, 1, 2, 2)
    >>> clipped_attention(Operands(q, k, v, bias=logits), zeta=1.0, gamma=-0.25).flatten()
    tensor([0.7500, 0.0000])
    """
    seen = band_mask(x.band, x.q.shape[2], x.k.shape[2])
    weights = ((zeta - gamma) * attention_weights(x, seen) + gamma).clamp(0, 1)
    return zero_where_blind(x, seen, times_values(weights, x))


def by_settings(
    *operands: Any,
    zeta: float = 1.0,
    gamma: float = 0.0,
    alpha: float = 0.0,
    **settings: Any,
) -> torch.Tensor:
    """Return attention by the settings of ``torch.ops.rewriter.clipped``: ``alpha`` is per key."""
    x = operands_of(*operands, **settings)
    return clipped_attention(x, zeta=zeta, gamma=gamma - alpha / x.k.shape[2])
