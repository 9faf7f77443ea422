"""A byte-level causal language model: rotary positions, grouped queries, gated feed-forward.

Six query heads share two key/value heads. Positions come from the length of the input, so any length
runs; it is trained on up to 1,024 bytes. Attention is spelled out, mask and grouping included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

import torch
from torch import Tensor, nn

__all__ = ["ByteLM", "Config", "bits_per_byte", "encode", "example_inputs", "held_out"]


@dataclass(frozen=True)
class Config:
    """Sizes of the model.

    Parameters
    ----------
    dim, layers, hidden
        Width of a token, blocks, and width inside the feed-forward part.
    heads, kv_heads, head_dim
        Query heads, key/value heads that they share, and width of a head.
    context
        Longest input seen in training.
    rotary_base
        Wavelengths of the rotary positions are ``2 pi base**(2 i / head_dim)``.
    """

    dim: int = 192
    layers: int = 4
    hidden: int = 240
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    context: int = 1024
    rotary_base: float = 10000.0


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    """Grouped-query causal self-attention with rotary positions, spelled out."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.q = nn.Linear(config.dim, config.heads * config.head_dim, bias=False)
        self.k = nn.Linear(config.dim, config.kv_heads * config.head_dim, bias=False)
        self.v = nn.Linear(config.dim, config.kv_heads * config.head_dim, bias=False)
        self.out = nn.Linear(config.heads * config.head_dim, config.dim, bias=False)

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        batch, length, _ = x.shape
        return x.reshape(batch, length, heads, self.config.head_dim).transpose(1, 2)

    def _shared(self, x: Tensor) -> Tensor:
        batch, heads, length, dim = x.shape
        group = self.config.heads // heads
        return (
            x.unsqueeze(2).expand(batch, heads, group, length, dim).reshape(batch, heads * group, length, dim)
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, visible: Tensor) -> Tensor:
        """Map ``[B, S, C]`` to ``[B, S, C]``; ``visible[i, j]`` says whether byte i sees byte j."""
        q = _rotate(self._heads(self.q(x), self.config.heads), cos, sin)
        k = self._shared(_rotate(self._heads(self.k(x), self.config.kv_heads), cos, sin))
        v = self._shared(self._heads(self.v(x), self.config.kv_heads))
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.config.head_dim)
        weights = torch.softmax(scores.masked_fill(~visible, float("-inf")), dim=-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class FeedForward(nn.Module):
    """SwiGLU: one projection gates another."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate = nn.Linear(config.dim, config.hidden, bias=False)
        self.up = nn.Linear(config.dim, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, S, C]`` to ``[B, S, C]``."""
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-normalised attention and feed-forward, each added to its input."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(config.dim, eps=1e-6)
        self.attention = Attention(config)
        self.norm2 = nn.RMSNorm(config.dim, eps=1e-6)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, visible: Tensor) -> Tensor:
        """Map ``[B, S, C]`` to ``[B, S, C]``."""
        x = x + self.attention(self.norm1(x), cos, sin, visible)
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class ByteLM(nn.Module):
    """The language model; the output layer shares the embedding's weights."""

    frequencies: Tensor

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config or Config()
        self.embedding = nn.Embedding(256, self.config.dim)
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.blocks = nn.ModuleList(Block(self.config) for _ in range(self.config.layers))
        self.norm = nn.RMSNorm(self.config.dim, eps=1e-6)
        powers = torch.arange(0, self.config.head_dim, 2) / self.config.head_dim
        self.register_buffer("frequencies", self.config.rotary_base**-powers, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scores of the next byte ``[B, S, 256]`` for bytes ``[B, S]`` (int64)."""
        at = torch.arange(tokens.shape[1], device=tokens.device)
        angles = (at.unsqueeze(1) * self.frequencies).repeat(1, 2)
        cos, sin = angles.cos(), angles.sin()
        visible = at.unsqueeze(0) <= at.unsqueeze(1)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cos, sin, visible)
        return self.norm(x) @ self.embedding.weight.T  # type: ignore[no-any-return]


def encode(text: str) -> Tensor:
    """Return the UTF-8 bytes of ``text`` as int64 ``[length]``."""
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()


def held_out() -> Tensor:
    """Return the bundled text that training never sees, as bytes ``[length]`` (see data/README.md)."""
    return encode(files("rewriter.models_zoo").joinpath("data", "held_out.txt").read_text(encoding="utf-8"))


def example_inputs(batch: int = 2, length: int = 128) -> tuple[Tensor, ...]:
    """Return consecutive pieces of the held-out text, ``[batch, length]``."""
    return (held_out()[: batch * length].reshape(batch, length).clone(),)


def windows(length: int = 1024, limit: int | None = None) -> Iterator[Tensor]:
    """Yield the held-out text in pieces of ``length + 1`` bytes ``[1, length + 1]``, at most ``limit``."""
    text = held_out()
    starts = range(0, len(text) - length, length)
    for start in starts[:limit]:
        yield text[start : start + length + 1].unsqueeze(0)


def bits_per_byte(model: nn.Module, length: int = 1024, limit: int | None = None) -> float:
    """Return the mean cost in bits of a held-out byte, predicted from up to ``length`` bytes before it."""
    total, count = 0.0, 0
    with torch.inference_mode():
        for piece in windows(length, limit):
            scores = model(piece[:, :-1]).flatten(0, 1).double()
            total += float(nn.functional.cross_entropy(scores, piece[:, 1:].flatten(), reduction="sum"))
            count += length
    return total / count / math.log(2)
