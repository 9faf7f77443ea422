"""Python loops that unroll: over blocks of queries, heads, entries of the batch. Each turn is a site."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.sites.spellings.entry import SCALE, B, D, E, H, L, Theme, kt, soft

__all__ = ["LOOPS"]

LOOPS = Theme("loops")


@LOOPS.spelling(sites=3)
def blocks_of_queries(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return torch.cat([soft(part @ kt(keys) * SCALE, values) for part in q.split(2, 2)], 2)


@LOOPS.spelling(sites=3)
def blocks_of_queries_and_what_they_see(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In order: a block of queries needs no key after its own end."""
    done = []
    for start in range(0, L, 2):
        end = start + 2
        s = q[:, :, start:end] @ kt(k[:, :, :end]) * SCALE
        late = torch.arange(end)[None] > torch.arange(start, end)[:, None]
        done.append(soft(s.masked_fill(late, -torch.inf), v[:, :, :end]))
    return torch.cat(done, 2)


@LOOPS.spelling(sites=3)
def blocks_written_into_a_result(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    o = torch.zeros_like(q)
    for start in range(0, L, 2):
        o[:, :, start : start + 2] = soft(q[:, :, start : start + 2] @ kt(keys) * SCALE, values)
    return o


@LOOPS.spelling(sites=H, heads=1)
class HeadsOneByOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.ModuleList(nn.Linear(E, D) for _ in range(H)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        heads = zip(self.q, self.k, self.v, strict=True)
        return torch.cat([soft(q(x) @ kt(k(x)) * SCALE, v(x)) for q, k, v in heads], -1)


@LOOPS.spelling(sites=H)
def heads_stacked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.stack([soft(q[:, h] @ kt(k[:, h]) * SCALE, v[:, h]) for h in range(H)], 1)


@LOOPS.spelling(sites=B, heads=H)
def batch_one_by_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.stack([soft(a @ kt(b) * SCALE, c) for a, b, c in zip(q, k, v, strict=True)])


@LOOPS.spelling(sites=2)
def halves_of_the_batch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Sequences of different lengths, cut before they are attended to."""
    short = soft(q[:1, :, :4] @ kt(k[:1, :, :4]) * SCALE, v[:1, :, :4])
    long = soft(q[1:] @ kt(k[1:]) * SCALE, v[1:])
    return torch.cat([nn.functional.pad(short, (0, 0, 0, 2)), long])


@LOOPS.spelling(sites=3, heads=H)
class LayersWithOneWeight(nn.Module):
    """One layer, used three times."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(E, 3 * E)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            q, k, v = self.qkv(x).view(B, L, 3, H, D).permute(2, 0, 3, 1, 4)
            x = x + soft(q @ kt(k) * SCALE, v).transpose(1, 2).flatten(2)
        return x


@LOOPS.spelling(sites=2)
def inner_and_outer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The result of one attention is the value of the next."""
    return soft(k @ kt(q) * SCALE, soft(q @ kt(k) * SCALE, v))
