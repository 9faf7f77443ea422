"""Softmax attention by its definition: dense, plain, in float32 or wider."""

from __future__ import annotations

from typing import Protocol, SupportsInt

import torch

__all__ = ["BandLike", "attend", "band_mask", "softmax_attention"]


class BandLike(Protocol):
    """Key ``j`` is visible to query ``i`` iff ``-left <= j - (i + offset) <= right``; None is unbounded."""

    @property
    def offset(self) -> SupportsInt:
        """Position of query 0 on the axis of the keys."""

    @property
    def left(self) -> int | None:
        """How far back a query sees."""

    @property
    def right(self) -> int | None:
        """How far ahead a query sees."""


def band_mask(band: BandLike | None, queries: int, keys: int) -> torch.Tensor:
    """Return ``[I, J]`` booleans: True where the band lets a query see a key."""
    offset = int(band.offset) if band is not None else 0
    ahead = torch.arange(keys) - (torch.arange(queries)[:, None] + offset)
    seen = torch.ones(queries, keys, dtype=torch.bool)
    if band is not None and band.left is not None:
        seen &= ahead >= -band.left
    if band is not None and band.right is not None:
        seen &= ahead <= band.right
    return seen


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    seen: torch.Tensor,
) -> torch.Tensor:
    """Return ``softmax(scale · q kᵀ + bias where seen, else -inf) v``; a row that sees nothing gives NaN.

    Parameters
    ----------
    q
        ``[B, H, I, D]``.
    k, v
        ``[B, G, J, D]`` and ``[B, G, J, E]``; query head ``h`` reads key head ``h // (H // G)``.
    bias
        Broadcasts to ``[B, H, I, J]``, or None.
    scale
        Factor on the scores.
    seen
        Booleans ``[I, J]``.

    Returns
    -------
    torch.Tensor
        ``[B, H, I, E]`` in float32 or wider.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    share = q.shape[1] // k.shape[1]
    keys, values = (x.to(wide).repeat_interleave(share, dim=1) for x in (k, v))
    scores = scale * torch.einsum("bhid,bhjd->bhij", q.to(wide), keys)
    if bias is not None:
        scores = scores + bias.to(wide)
    scores = scores.masked_fill(~seen.to(scores.device), float("-inf"))
    return torch.einsum("bhij,bhje->bhie", scores.softmax(dim=-1), values)


def softmax_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    band: BandLike | None = None,
) -> torch.Tensor:
    """Return softmax attention; arguments as `attend`, and the band that the bias leaves out."""
    return attend(q, k, v, bias, scale, band_mask(band, q.shape[2], k.shape[2]))
