"""Keys and values from before: joined, kept apart, written into place, learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.sites.spellings.entry import SCALE, B, D, E, H, L, S, Theme, kt, soft

__all__ = ["CACHES"]

CACHES = Theme("caches")
ONE_TOKEN = {"q": (B, H, 1, D), "k": (B, H, 1, D), "v": (B, H, 1, D)}


@CACHES.spelling(scale=SCALE)
def joined(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    k, v = torch.cat([keys, k], -2), torch.cat([values, v], -2)
    return soft(q @ kt(k) * SCALE, v), k, v


@CACHES.spelling()
def joined_in_order(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    k, v = torch.cat([keys, k], -2), torch.cat([values, v], -2)
    i, j = torch.arange(L)[:, None] + S, torch.arange(S + L)
    return soft((q @ kt(k) * SCALE).masked_fill(j > i, -torch.inf), v)


@CACHES.spelling(shapes={"keys": (B, H, D, S)}, scale=SCALE)
def keys_kept_transposed(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    k, v = torch.cat([keys, kt(k)], -1), torch.cat([values, v], -2)
    return soft(q @ k * SCALE, v)


@CACHES.spelling(shapes={"past": (2, B, H, S, D)}, scale=SCALE)
def both_in_one_tensor(q: Tensor, k: Tensor, v: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    both = torch.cat([past, torch.stack([k, v])], -2)
    return soft(q @ kt(both[0]) * SCALE, both[1]), both


@CACHES.spelling(shapes=ONE_TOKEN)
def one_token_after_many(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    k, v = torch.cat([keys, k], -2), torch.cat([values, v], -2)
    return soft(q @ kt(k) * SCALE, v)


@CACHES.spelling()
def written_into_place(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """New entries overwrite the end of a buffer of fixed length."""
    at = torch.arange(S - L, S)
    k, v = keys.index_copy(2, at, k), values.index_copy(2, at, v)
    seen = torch.arange(S)[None] <= at[:, None]
    return soft((q @ kt(k) * SCALE).masked_fill(~seen, -torch.inf), v)


@CACHES.spelling(scale=SCALE)
def start_of_a_buffer(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return soft(q @ kt(keys[:, :, :7]) * SCALE, values[:, :, :7])


@CACHES.spelling(scale=SCALE)
def last_of_a_buffer(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    k, v = (torch.cat(x, 2)[:, :, -12:] for x in ((keys, k), (values, v)))
    return soft(q @ kt(k) * SCALE, v)


@CACHES.spelling(traits=("score-function",))
def two_products_one_softmax(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    now = q @ kt(k) * SCALE + torch.full((L, L), -torch.inf).triu(1)
    weights = torch.cat([q @ kt(keys) * SCALE, now], -1).softmax(-1)
    return weights[..., :S] @ values + weights[..., S:] @ v


@CACHES.spelling(shapes={"image": (B, 16, 5, 7)}, traits=("score-function",))
class RowsAndColumns(nn.Module):
    """Every place sees its row and its column, once each, under one softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Conv2d(16, n, 1) for n in (4, 4, 16))

    def forward(self, image: Tensor) -> Tensor:
        q, k, v = self.q(image), self.k(image), self.v(image)
        itself = torch.where(torch.eye(5, dtype=torch.bool), -torch.inf, 0.0)[:, None]
        columns = torch.einsum("bchw,bcyw->bhwy", q, k) + itself
        rows = torch.einsum("bchw,bchx->bhwx", q, k)
        weights = torch.cat([columns, rows], -1).softmax(-1)
        return torch.einsum("bhwy,bcyw->bchw", weights[..., :5], v) + torch.einsum(
            "bhwx,bchx->bchw", weights[..., 5:], v
        )


@CACHES.spelling(shapes={"x": (B, L, E), "memory": (B, 4, E)}, heads=H)
class JoinedBeforeTheProjection(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(E, E), nn.Linear(E, 2 * E)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        k, v = self.kv(torch.cat([memory, x], 1)).view(B, L + 4, 2, H, D).permute(2, 0, 3, 1, 4)
        q = self.q(x).view(B, L, H, D).transpose(1, 2)
        return soft(q @ kt(k) * SCALE, v)


@CACHES.spelling(heads=H)
class LearnedPrefix(nn.Module):
    """A few keys and values are learned, and the same for every entry of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.v = (nn.Parameter(torch.randn(1, H, 3, D)) for _ in range(2))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (torch.cat([p.expand(B, -1, -1, -1), x], 2) for p, x in ((self.k, k), (self.v, v)))
        return soft(q @ kt(k) * SCALE, v)


@CACHES.spelling(heads=H)
class LearnedNullKeyAndValue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.randn(2, D))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor) -> Tensor:
        nk, nv = (t.view(1, 1, 1, D).repeat(B, H, 1, 1) for t in self.null.unbind(0))
        k, v = torch.cat([nk, k], -2), torch.cat([nv, v], -2)
        seen = nn.functional.pad(keep, (1, 0), value=True)[:, None, None]
        return soft((q @ kt(k) * SCALE).masked_fill(~seen, -torch.inf), v)


@CACHES.spelling(sites=2)
def text_and_picture_added(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Two attentions of the same queries, added: two softmaxes, two sites."""
    return soft(q @ kt(k) * SCALE, v) + 0.6 * soft(q @ kt(keys) * SCALE, values)


@CACHES.spelling(shapes={"x": (B, L, 3 * E), "memory": (B, S, 3 * E)}, heads=H)
def two_streams_joined(x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Queries, keys and values of both streams are joined, and the result is cut."""
    q, k, v = (
        torch.cat([a, b], 1).unflatten(-1, (H, D)).transpose(1, 2)
        for a, b in zip(memory.chunk(3, -1), x.chunk(3, -1), strict=True)
    )
    o = soft(q @ kt(k) * SCALE, v).transpose(1, 2).flatten(2)
    return o[:, :S], o[:, S:]
