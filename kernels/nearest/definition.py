"""The nearest token of another set by its definition: plain, in float32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["by_settings"]


def by_settings(
    first: Tensor,
    second: Tensor,
    first_term: Tensor,
    second_term: Tensor,
    first_size: Tensor | None = None,
    second_size: Tensor | None = None,
) -> Tensor:
    """Return the largest nearness to a token of the other set, and whose it is: ``[B, 2, N]``.

    The nearness of ``i`` and ``j`` is ``floor(first_i · second_j + first_term_i + second_term_j)``, times
    ``m n / (m + n)`` where they stand for ``m`` and ``n`` tokens; of equal ones the first is the largest. A
    token that stands for none is nearest to nothing, nor is one whose nearness is NaN: its nearness is
    ``-inf``, and where there are only such, the place is 0.

    Parameters
    ----------
    first, second
        ``[B, N, D]`` and ``[B, M, D]``.
    first_term, second_term
        ``[B, N, 1]`` and ``[B, M, 1]``.
    first_size, second_size
        Of the same shapes, both or none; None is 1.

    Examples
    --------
    >>> x, y = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0], [0.5, 0.0]]])
    >>> by_settings(4 * x, y, torch.zeros(1, 1, 1), torch.zeros(1, 2, 1)).tolist()
    [[[2.0], [1.0]]]
    """
    wide = torch.promote_types(first.dtype, torch.float32)
    terms = first_term.to(wide) + second_term.to(wide).mT
    near = torch.floor(first.to(wide) @ second.to(wide).mT + terms)
    if first_size is not None and second_size is not None:
        m, n = first_size.to(wide), second_size.to(wide).mT
        near = near * (m * n / (m + n).clamp(min=torch.finfo(torch.float32).tiny))
        near = near.masked_fill(n == 0, -torch.inf)
    near = near.masked_fill(near.isnan(), -torch.inf)
    best = near.amax(dim=-1, keepdim=True)
    return torch.stack([best[..., 0], (near == best).int().argmax(dim=-1).to(wide)], dim=1)
