"""Gradients of attention by a clipped softmax, by their formulas: dense, plain, in float32 or wider."""

from __future__ import annotations

import torch

from rewriter.kernels.softmax.definition import Operands
from rewriter.kernels.softmax.gradient import Gradients, softmax_gradient

__all__ = ["clipped_gradient"]


def clipped_gradient(
    x: Operands, seen: torch.Tensor, grad: torch.Tensor, *, zeta: float, gamma: float
) -> Gradients:
    """Return the gradients of `rewriter.kernels.clipped.definition.clipped_attention`, each like its operand.

    A weight that is cut off passes no gradient on, nor does a row that sees nothing.

    Parameters
    ----------
    x, seen, grad
        As of `rewriter.kernels.softmax.gradient.softmax_gradient`.
    zeta, gamma
        As of `rewriter.kernels.clipped.definition.clipped_attention`.
    """

    def clipped(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        stretched = (zeta - gamma) * weights + gamma
        kept = (stretched >= 0) & (stretched <= 1)
        return stretched.clamp(0, 1), (zeta - gamma) * kept.to(weights.dtype)

    return softmax_gradient(x, seen, grad, clipped)
