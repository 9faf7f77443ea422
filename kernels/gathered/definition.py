"""Softmax attention of a few queries by its definition: plain, in float32 or wider."""

from __future__ import annotations

import torch

from rewriter.kernels.softmax.definition import by_settings as softmax_by_settings

__all__ = ["by_settings"]


def by_settings(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None, *, scale: float
) -> torch.Tensor:
    """Return attention by the settings of ``torch.ops.rewriter.gathered``; a blind query gives 0."""
    return softmax_by_settings(q, k, v, bias, scale=scale, empty_row="zero")
