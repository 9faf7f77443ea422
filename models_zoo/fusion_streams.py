"""Models of several streams as their papers' formulas have them: small, with fixed random weights.

Streams are tokens ``[B, N, C]`` of one width.

>>> import torch
>>> build("bottleneck", width=8)(torch.ones(1, 5, 8), torch.ones(1, 4, 8)).shape
torch.Size([1, 8])
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

__all__ = ["MODULES", "build"]

HEADS = 2


class Attention(nn.Module):
    """Softmax attention of one sequence to another."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``[B, N, C]`` for queries ``x`` ``[B, N, C]`` and keys and values of ``y`` ``[B, M, C]``."""
        q, k, v = (
            f(z).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for f, z in ((self.q, x), (self.k, y), (self.v, y))
        )
        weights = torch.softmax(q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5, -1)
        joined: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return joined


class Layer(nn.Module):
    """A layer of a transformer, the norm first: self-attention, or with ``y`` cross-attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.other, self.last = (nn.LayerNorm(width) for _ in range(3))
        self.attention = Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the new tokens of ``x``."""
        normal = self.norm(x)
        x = x + self.attention(normal, normal if y is None else self.other(y))
        found: Tensor = x + self.mlp(self.last(x))
        return found


class EarlyFusion(nn.Module):
    """Self-attention over the tokens of both: Nayakanti and others, Wayformer, 2022, section 3.2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.x, self.y = nn.Linear(width, width), nn.Linear(width, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean token."""
        z = torch.cat([self.x(x), self.y(y)], 1)
        for layer in self.layers:
            z = layer(z)
        found: Tensor = z.mean(1)
        return found


class LateFusion(nn.Module):
    """An encoder for each, joined afterwards: Wayformer, section 3.2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.x, self.y = Layer(width), Layer(width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean token."""
        return torch.cat([self.x(x), self.y(y)], 1).mean(1)


class HierarchicalFusion(nn.Module):
    """An encoder for each, and then one over the tokens of both: Wayformer, section 3.2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.x, self.y, self.both = Layer(width), Layer(width), Layer(width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean token."""
        found: Tensor = self.both(torch.cat([self.x(x), self.y(y)], 1)).mean(1)
        return found


class Bottleneck(nn.Module):
    """Streams that meet in a few learned tokens: Nagrani and others, 2021, equations 8 and 9."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(1, 3, width))
        self.x = nn.ModuleList(Layer(width) for _ in range(2))
        self.y = nn.ModuleList(Layer(width) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean token of both."""
        z = self.tokens.expand(x.shape[0], -1, -1)
        n, m = x.shape[1], y.shape[1]
        for of_x, of_y in zip(self.x, self.y, strict=True):
            x, z_x = of_x(torch.cat([x, z], 1)).split([n, z.shape[1]], 1)
            y, z_y = of_y(torch.cat([y, z], 1)).split([m, z.shape[1]], 1)
            z = (z_x + z_y) / 2
        return x.mean(1) + y.mean(1)


class Bidirectional(nn.Module):
    """Each stream asks the other at once: Lu and others, ViLBERT, 2019, section 3.1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.x = nn.ModuleList(Layer(width) for _ in range(2))
        self.y = nn.ModuleList(Layer(width) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean token of both."""
        for of_x, of_y in zip(self.x, self.y, strict=True):
            x, y = of_x(x, y), of_y(y, x)
        return x.mean(1) + y.mean(1)


class TwoWay(nn.Module):
    """One stream asks the other, which then asks back: Kirillov and others, 2023, mask decoder."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.x, self.y = Layer(width), Layer(width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean token of both."""
        x = self.x(x, y)
        found: Tensor = x.mean(1) + self.y(y, x).mean(1)
        return found


class CrossAttention(nn.Module):
    """One stream asks the other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.x = Layer(width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean token."""
        found: Tensor = self.x(x, y).mean(1)
        return found


class LearnedGate(nn.Module):
    """``x + tanh(alpha) · attention(x, y)``: Alayrac and others, Flamingo, 2022, figure 4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.norm = Attention(width), nn.LayerNorm(width)
        self.alpha = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the new tokens of ``x``."""
        found: Tensor = x + self.alpha.tanh() * self.attention(self.norm(x), y)
        return found


class ComputedGate(nn.Module):
    """``x + sigmoid(W [x, z]) · z`` with ``z = attention(x, y)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.gate = Attention(width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the new tokens of ``x``."""
        z = self.attention(x, y)
        found: Tensor = x + torch.sigmoid(self.gate(torch.cat([x, z], -1))) * z
        return found


MODULES: Mapping[str, Callable[[int], nn.Module]] = {
    "bidirectional": Bidirectional,
    "bottleneck": Bottleneck,
    "computed-gate": ComputedGate,
    "cross-attention": CrossAttention,
    "early-fusion": EarlyFusion,
    "hierarchical-fusion": HierarchicalFusion,
    "late-fusion": LateFusion,
    "learned-gate": LearnedGate,
    "two-way": TwoWay,
}
"""Name -> what makes a module of a width."""


def build(name: str, width: int) -> nn.Module:
    """Return a module with fixed random weights, for inference.

    Parameters
    ----------
    name
        A key of `MODULES`.
    width
        Of the tokens; even.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODULES[name](width).eval()
