"""Gradients of softmax attention by their formulas: dense, plain, in float32 or wider.

An operator of PyTorch computes its gradient by an operator of its own, inside of which nothing is recorded
for automatic differentiation; hence the formulas. With ``s`` the scores, ``p = softmax(s)``, ``o = p v`` and
``g`` the gradient of ``o``: ``dv = pᵀ g``, ``dp = g vᵀ``, ``ds = p (dp - sum of g o over features)``,
``dq = scale · ds k``, ``dk = scale · dsᵀ q``; Dao et al., *FlashAttention* (2022), appendix B.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from rewriter.kernels.softmax.definition import Operands, attention_weights

__all__ = ["Gradients", "softmax_gradient"]

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]
"""Gradients of q, k, v, bias and sink; None where there is no such operand."""


def softmax_gradient(
    x: Operands,
    seen: torch.Tensor,
    grad: torch.Tensor,
    applied: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None,
) -> Gradients:
    """Return the gradients of `rewriter.kernels.softmax.definition.attend`, each like its operand.

    A row that sees neither key nor sink passes no gradient on.

    Parameters
    ----------
    x
        Operands.
    seen
        Booleans ``[I, J]``.
    grad
        Gradient of the result, ``[B, H, I, E]``.
    applied
        What the weights become before they meet the values, and its slope; they stay as they are if None.
    """
    wide = torch.promote_types(x.q.dtype, torch.float32)
    share = x.q.shape[1] // x.k.shape[1]
    q, g = x.q.to(wide), grad.to(wide)
    k, v = (t.to(wide).repeat_interleave(share, dim=1) for t in (x.k, x.v))
    weights = attention_weights(x, seen).nan_to_num(0.0)
    of_weights = torch.einsum("bhie,bhje->bhij", g, v)
    met = weights
    if applied is not None:
        met, slope = applied(weights)
        of_weights = of_weights * slope
    mean = (weights * of_weights).sum(-1, keepdim=True)
    of_scores = weights * (of_weights - mean)
    of_products = x.scale * of_scores
    if x.softcap is not None:
        capped = torch.tanh(x.scale * torch.einsum("bhid,bhjd->bhij", q, k) / x.softcap)
        of_products = of_products * (1 - capped.square())
    of_k = torch.einsum("bhij,bhid->bhjd", of_products, q)
    of_v = torch.einsum("bhij,bhie->bhje", met, g)
    return (
        torch.einsum("bhij,bhjd->bhid", of_products, k).to(x.q.dtype),
        _of_groups(of_k, x.k),
        _of_groups(of_v, x.v),
        None if x.bias is None else of_scores.sum_to_size(x.bias.shape).to(x.bias.dtype),
        None if x.sink is None else _of_sink(x, seen, mean),
    )


def _of_groups(of_heads: torch.Tensor, operand: torch.Tensor) -> torch.Tensor:
    """Return ``[B, G, J, D]``: what all heads that read one key head ask of it."""
    B, G, keys, width = operand.shape
    return of_heads.reshape(B, G, -1, keys, width).sum(2).to(operand.dtype)


def _of_sink(x: Operands, seen: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the sinks: their values are 0, so a sink of weight ``p`` has ``-p · mean``."""
    assert x.sink is not None
    taken = 1 - attention_weights(x, seen).sum(-1, keepdim=True)
    shares = x.sink.to(mean.dtype).softmax(-1).nan_to_num(0.0)
    return (-taken.nan_to_num(0.0) * shares * mean).sum_to_size(x.sink.shape).to(x.sink.dtype)
