"""Several maps weighed by a softmax over them by its definition: plain, in float32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["by_settings"]


def by_settings(scores: Tensor, *maps: Tensor | None) -> Tensor:
    """Return ``sum over n of maps[n] · softmax(scores)[n]`` by the operands of the operator.

    Parameters
    ----------
    scores
        ``[N, B, C, …]``, an axis of the maps being 1 where they are the same along it.
    maps
        ``N`` tensors ``[B, C, …]``, of one shape; None for those that there are not.

    Examples
    --------
    >>> by_settings(torch.zeros(2, 1, 1), torch.ones(1, 3), 3 * torch.ones(1, 3))
    tensor([[2., 2., 2.]])
    """
    given = [x for x in maps if x is not None]
    wide = torch.promote_types(given[0].dtype, torch.float32)
    weights = scores.to(wide).softmax(0)
    total = sum((x.to(wide) * w for x, w in zip(given, weights, strict=True)), torch.zeros((), dtype=wide))
    return total.to(given[0].dtype)
