"""Gradients of maps weighed by a softmax over them, by formula."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["weighed_gradient"]


def weighed_gradient(grad: Tensor, scores: Tensor, *maps: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradient of each operand of ``torch.ops.rewriter.weighed``.

    With ``p = softmax(s)`` and ``d[n] = g · x[n]``, summed over the axes along which the scores are the same:
    ``dx[n] = g · p[n]`` and ``ds[n] = p[n] · (d[n] - sum over m of p[m] · d[m])``.
    """
    given = [x for x in maps if x is not None]
    wide = torch.promote_types(grad.dtype, torch.float32)
    weights, g = scores.to(wide).softmax(0), grad.to(wide)
    found = torch.stack([_summed(g * x.to(wide), weights.shape[1:]) for x in given])
    of_scores = weights * (found - (weights * found).sum(0))
    of_maps = [(g * w).to(x.dtype) for x, w in zip(given, weights, strict=True)]
    missing = [None] * (len(maps) - len(given))
    return (of_scores.to(scores.dtype), *of_maps, *missing)


def _summed(x: Tensor, shape: torch.Size) -> Tensor:
    axes = [k for k, n in enumerate(shape) if n == 1]
    return x.sum(axes, keepdim=True) if axes else x
