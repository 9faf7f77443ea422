"""One attention directly on the result of another: the second does not mix the heads of the first."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import rewriter

B, N, H, D = 2, 9, 4, 8
C = H * D


def heads(x: Tensor) -> Tensor:
    return x.view(*x.shape[:-1], H, D).transpose(-3, -2)


class Flat(nn.Module):
    """Projections of flattened tokens, as one product ``x W + b``."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(C, 3 * C)
        self.out = nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(t.view(B, N, C)) for t in self.qkv(x.reshape(B * N, C)).chunk(3, -1))
        mixed = (q @ k.transpose(-2, -1) / D**0.5).softmax(-1) @ v
        merged: Tensor = self.out(mixed.transpose(1, 2).reshape(B * N, C))
        return merged.view(B, N, C)


class Pooled(nn.Module):
    """A learned query asks all tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, C))
        self.q, self.kv = nn.Linear(C, C), nn.Linear(C, 2 * C)

    def forward(self, x: Tensor) -> Tensor:
        k, v = (heads(t) for t in self.kv(x).chunk(2, -1))
        q = heads(self.q(self.query.expand(B, -1, -1)))
        result: Tensor = (q @ k.transpose(-2, -1) / D**0.5).softmax(-1) @ v
        return result.transpose(1, 2).flatten(1)


def kinds(*modules: nn.Module) -> list[tuple[str, tuple[str, ...]]]:
    program = rewriter.trace(nn.Sequential(*modules).eval(), (torch.randn(B, N, C),))
    assert not program.refused
    return [(site.kind, tuple(site.traits)) for site in program.sites]


def test_attention_of_attention() -> None:
    assert kinds(Flat(), Flat(), Flat()) == [("attention", ())] * 3


def test_pooling_of_attention() -> None:
    assert kinds(Flat(), Pooled()) == [("attention", ()), ("pooling", ())]
