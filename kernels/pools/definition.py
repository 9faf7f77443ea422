"""Several pools of one map by their definition: plain, in float32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["by_settings"]


def by_settings(x: Tensor, *, over: str = "rows") -> Tensor:
    """Return several pools of one map by the operands of the operator.

    Parameters
    ----------
    x
        ``[N, R, P]``; not empty.
    over
        ``rows``: the means and the maxima over ``R``, as ``[2, N, P]``. ``lines``: the means over ``P`` and
        then those over ``R``, one after the other, as ``[N, R + P]``.

    Examples
    --------
    >>> x = torch.tensor([[[1.0, 2.0, 3.0], [5.0, 6.0, 1.0]]])
    >>> by_settings(x)
    tensor([[[3., 4., 2.]],
    <BLANKLINE>
            [[5., 6., 3.]]])
    >>> by_settings(x, over="lines")
    tensor([[2., 4., 3., 4., 2.]])
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if over == "rows":
        return torch.stack([wide.sum(1) / x.shape[1], wide.amax(1)]).to(x.dtype)
    return torch.cat([wide.sum(2) / x.shape[2], wide.sum(1) / x.shape[1]], 1).to(x.dtype)
