"""Softmax attention by its definition: dense, plain, in float32 or wider."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, SupportsInt

import torch

__all__ = [
    "BandLike",
    "Diagonals",
    "Operands",
    "attend",
    "attention_weights",
    "band_mask",
    "by_settings",
    "operands_of",
    "softmax_attention",
    "times_values",
    "zero_where_blind",
]


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


@dataclass(frozen=True)
class Diagonals:
    """A `BandLike` of plain numbers."""

    offset: int = 0
    left: int | None = None
    right: int | None = None


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


@dataclass(frozen=True, eq=False)
class Operands:
    """What attention is computed from, as tensors.

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
    band
        What a query sees at most, besides what the bias hides; None is everything.
    softcap
        Scaled scores ``s`` become ``softcap · tanh(s / softcap)`` before the bias is added; None leaves them.
    sink
        Logits that take part in every softmax and have no value: broadcasts to ``[B, H, I, S]``, or None.
    normalizer
        What makes weights of the scores: ``softmax``; ``sum``, a division by their sum over the keys; or
        ``none``.
    shift
        Added to the scaled scores where there is no softmax.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    bias: torch.Tensor | None = None
    scale: float = 1.0
    band: BandLike | None = None
    softcap: float | None = None
    sink: torch.Tensor | None = None
    normalizer: str = "softmax"
    shift: float = 0.0


def attention_weights(x: Operands, seen: torch.Tensor) -> torch.Tensor:
    """Return what each query gives to each key, ``[B, H, I, J]`` in float32 or wider.

    That is ``softmax(softcap(scale · q kᵀ) + bias where seen, else -inf; sink)``, where the weight of the
    sink is dropped. A row that sees neither key nor sink gives NaN. The band is not read.

    Parameters
    ----------
    x
        Operands.
    seen
        Booleans ``[I, J]``.
    """
    wide = torch.promote_types(x.q.dtype, torch.float32)
    keys = _for_every_head(x.k, x)
    scores = x.scale * torch.einsum("bhid,bhjd->bhij", x.q.to(wide), keys)
    if x.softcap is not None:
        scores = x.softcap * torch.tanh(scores / x.softcap)
    if x.bias is not None:
        scores = scores + x.bias.to(wide)
    scores = scores.masked_fill(~seen.to(scores.device), float("-inf"))
    if x.sink is not None:
        beside = x.sink.to(wide).expand(*scores.shape[:3], -1)
        scores = torch.cat([scores, beside], dim=-1)
    return scores.softmax(dim=-1)[..., : keys.shape[2]]


def attend(x: Operands, seen: torch.Tensor) -> torch.Tensor:
    """Return attention of each query to the keys that it sees, ``[B, H, I, E]`` in float32 or wider.

    That is `attention_weights` times the values; a row that sees neither key nor sink gives NaN.

    Parameters
    ----------
    x
        Operands.
    seen
        Booleans ``[I, J]``.
    """
    return times_values(attention_weights(x, seen), x)


def times_values(weights: torch.Tensor, x: Operands) -> torch.Tensor:
    """Return weights ``[B, H, I, J]`` times the values of each head, ``[B, H, I, E]``."""
    return torch.einsum("bhij,bhje->bhie", weights, _for_every_head(x.v, x))


def zero_where_blind(x: Operands, seen: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """Return ``[B, H, I, E]`` with 0 for every query that sees no key."""
    hidden = ~seen if x.bias is None else ~seen | (x.bias == float("-inf"))
    return result.masked_fill(hidden.all(dim=-1, keepdim=True).expand(result.shape), 0.0)


def _for_every_head(keys: torch.Tensor, x: Operands) -> torch.Tensor:
    wide = torch.promote_types(x.q.dtype, torch.float32)
    return keys.to(wide).repeat_interleave(x.q.shape[1] // keys.shape[1], dim=1)


def softmax_attention(x: Operands) -> torch.Tensor:
    """Return softmax attention, ``[B, H, I, E]`` in float32 or wider."""
    return attend(x, band_mask(x.band, x.q.shape[2], x.k.shape[2]))


def operands_of(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    *,
    scale: float,
    offset: int = 0,
    left: int | None = None,
    right: int | None = None,
    softcap: float | None = None,
    empty_row: str = "never",
) -> Operands:
    """Return the operands of a fused operator by its settings; what an empty row gives is not among them."""
    band = None if left is None and right is None else Diagonals(offset, left, right)
    return Operands(q, k, v, bias, scale, band, softcap, sink)


def by_settings(*operands: Any, empty_row: str = "never", **settings: Any) -> torch.Tensor:
    """Return softmax attention by the settings of ``torch.ops.rewriter.softmax``."""
    x = operands_of(*operands, **settings)
    result = softmax_attention(x)
    seen = band_mask(x.band, x.q.shape[2], x.k.shape[2])
    return zero_where_blind(x, seen, result) if empty_row == "zero" and x.sink is None else result
