"""An image transformer on scikit-learn's 8x8 digits: every pixel is a token, with a class token in front.

The grid is two-dimensional (8 x 8) behind one prefix token, which is what windows on a grid, token
merging and pooling need. Attention is spelled out: two matrix products around a softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Config", "DigitsViT", "accuracy", "example_inputs", "held_out", "training_set"]

_HELD_OUT = 360
_BRIGHTEST = 16.0


@dataclass(frozen=True)
class Config:
    """Sizes of the model.

    Parameters
    ----------
    grid
        Tokens per side; a token sees the 3 x 3 pixels around its own.
    dim, heads, layers, hidden
        Width of a token, attention heads, blocks, and width inside the feed-forward part.
    classes
        Digits.
    """

    grid: int = 8
    dim: int = 64
    heads: int = 4
    layers: int = 4
    hidden: int = 128
    classes: int = 10


class Attention(nn.Module):
    """Multi-head self-attention, spelled out."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.scale = (config.dim // config.heads) ** -0.5
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, S, C]`` to ``[B, S, C]``."""
        batch, length, dim = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-2, -1) * self.scale, dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, length, dim))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-normalised attention and feed-forward, each added to its input."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.dim)
        self.mlp = nn.Sequential(
            nn.Linear(config.dim, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, S, C]`` to ``[B, S, C]``."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class DigitsViT(nn.Module):
    """The classifier: overlapping patches to tokens, a class token, positions, blocks, a linear head."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config or Config()
        self.patches = nn.Conv2d(1, self.config.dim, kernel_size=3, padding=1)
        self.cls = nn.Parameter(torch.zeros(1, 1, self.config.dim))
        self.positions = nn.Parameter(torch.randn(1, 1 + self.config.grid**2, self.config.dim) * 0.3)
        self.blocks = nn.ModuleList(Block(self.config) for _ in range(self.config.layers))
        self.norm = nn.LayerNorm(self.config.dim)
        self.head = nn.Linear(self.config.dim, self.config.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores ``[B, 10]`` of images ``[B, 8, 8]`` with values from 0 to 1."""
        tokens = self.patches(images.unsqueeze(1)).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(tokens.shape[0], -1, -1), tokens], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))  # type: ignore[no-any-return]


def training_set() -> tuple[Tensor, Tensor]:
    """Return images ``[1437, 8, 8]`` (float32, 0 to 1) and labels ``[1437]`` (int64), from scikit-learn."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = np.random.default_rng(0).permutation(len(digits.target))[_HELD_OUT:]
    return _tensors(digits.images[chosen], digits.target[chosen])


def held_out() -> tuple[Tensor, Tensor]:
    """Return the 360 images and labels that training never sees, which are bundled (see data/README.md)."""
    with files("rewriter.models_zoo").joinpath("data", "digits_held_out.npz").open("rb") as file:
        arrays = np.load(file)
        return _tensors(arrays["images"], arrays["labels"])


def _tensors(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    scaled = images.astype(np.float32) / np.float32(_BRIGHTEST)
    return torch.from_numpy(scaled), torch.from_numpy(labels.astype(np.int64))


def example_inputs(batch: int = 2) -> tuple[Tensor, ...]:
    """Return the first held-out images, ``[batch, 8, 8]``."""
    return (held_out()[0][:batch].clone(),)


def batches(size: int = 60) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the held-out images with their labels."""
    images, labels = held_out()
    yield from zip(torch.split(images, size), torch.split(labels, size), strict=True)


def accuracy(model: nn.Module) -> float:
    """Return the share of the held-out digits that ``model`` classifies correctly."""
    with torch.inference_mode():
        right = sum(int((model(images).argmax(-1) == labels).sum()) for images, labels in batches())
    return right / _HELD_OUT
