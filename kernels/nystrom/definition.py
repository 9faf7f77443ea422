"""Nyström attention by its definition: dense, plain, in float32 or wider."""

from __future__ import annotations

from dataclasses import replace

import torch

from rewriter.kernels.agent.definition import (
    attend_or_zero,
    by_keys,
    landmarks,
    shown_tokens,
    with_exact_rows,
)
from rewriter.kernels.softmax.definition import Operands, attention_weights, softmax_attention

__all__ = ["landmark_bias", "nystrom_attention", "pseudo_inverse"]


def pseudo_inverse(a: torch.Tensor, iterations: int) -> torch.Tensor:
    """Return an approximate pseudo-inverse of ``[…, n, n]`` matrices of weights (rows sum to 1).

    Source: Xiong et al., Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention, 2021,
    equation 15; each matrix by its own norms. Where ``‖A Z - I‖`` is below 1, an iteration takes it to its
    third power; directions that ``A`` all but removes grow by 3.25, the rounding in them too.
    """
    unit = torch.eye(a.shape[-1], dtype=a.dtype)
    z = a.mT / a.sum(-2, keepdim=True).amax(-1, keepdim=True)
    for _ in range(iterations):
        az = a @ z
        z = z @ (13 * unit - az @ (15 * unit - az @ (7 * unit - az))) / 4
    return z


def landmark_bias(
    bias: torch.Tensor, count: int, protect: int, pool: str, shown: torch.Tensor
) -> torch.Tensor:
    """Return the bias of the landmarks ``[B, H, 1, count]``, below the largest of its row.

    The bias broadcasts to ``[B, H, 1, J]``, what it does not hide is ``[B, H, J]``. It is one more feature of
    keys: landmarks have that of their tokens.
    """
    below = (bias - bias.amax(-1, keepdim=True)).expand(*shown.shape[:2], 1, -1)
    below = below.masked_fill(~shown[:, :, None], 0.0).nan_to_num(0.0)
    return landmarks(below.mT, count, protect, None, pool, shown).mT


def nystrom_attention(
    x: Operands,
    *,
    count: int,
    protect: int = 0,
    grid: tuple[int, int] | None = None,
    pool: str = "stride",
    iterations: int | None = 6,
) -> torch.Tensor:
    """Return Nyström attention, ``[B, H, I, E]``.

    That is ``softmax(scale · q k̃ᵀ + b̃) softmax(scale · q̃ k̃ᵀ + b̃)⁺ (softmax(scale · q̃ kᵀ + bias) v)``, where
    the landmarks ``q̃``, ``k̃`` and ``b̃`` are those of the same tokens, and softmax attention for the protected
    queries. Rows that see no key give 0.

    Operands are as in `rewriter.kernels.softmax.definition.attend`, without a band; the bias depends on keys
    only. Without ``iterations`` the pseudo-inverse is exact.

    Source: Xiong et al., 2021, equation 13, without the convolution.
    """
    x = by_keys(x)
    wide = torch.promote_types(x.q.dtype, torch.float32)
    shown = shown_tokens(x)
    q, k, v = (t.to(wide).repeat_interleave(x.q.shape[1] // t.shape[1], dim=1) for t in (x.q, x.k, x.v))
    queries, keys = (landmarks(t, count, protect, grid, pool, shown) for t in (q, k))
    every = torch.ones(count, count, dtype=torch.bool)
    bias = None if x.bias is None or shown is None else landmark_bias(x.bias, count, protect, pool, shown)
    middle = attention_weights(Operands(queries, keys, keys, bias, x.scale), every)
    inverse = torch.linalg.pinv(middle) if iterations is None else pseudo_inverse(middle, iterations)
    gathered = inverse @ attend_or_zero(replace(x, q=queries, k=k, v=v))
    result = softmax_attention(Operands(q, keys, gathered, bias, x.scale))
    return with_exact_rows(x, result, protect)
