"""Small vision transformers in several spellings, and one that merges its tokens in plain Python."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from rewriter.kernels.merge.definition import Matching, match, merged, unmerged

__all__ = ["LAYERS", "SPELLINGS", "TOKENS", "WIDTH", "Layer", "Vit", "by_hand"]

TOKENS, WIDTH, HEADS, LAYERS = 26, 12, 2, 4


class Layer(nn.Module):
    """A layer; ``spelling`` says how it is written."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.before, self.behind = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def heads(self, x: torch.Tensor) -> list[torch.Tensor]:
        batch, tokens, _ = x.shape
        parts = self.qkv(x).reshape(batch, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        return list(parts.unbind(0)) if self.spelling == "unbound" else [parts[0], parts[1], parts[2]]

    def attend(self, x: torch.Tensor, size: torch.Tensor | None = None) -> torch.Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.heads(x)
        if self.spelling == "eager":
            q, k, v = (t.reshape(batch * HEADS, tokens, -1) for t in (q, k, v))
            weights = (torch.bmm(q, k.transpose(1, 2)) / (WIDTH // HEADS) ** 0.5).softmax(-1)
            result = torch.bmm(weights, v).reshape(batch, HEADS, tokens, -1)
        else:
            often = None if size is None else size.log()[:, None, None, :]
            result = F.scaled_dot_product_attention(q, k, v, attn_mask=often)
        found: torch.Tensor = self.out(result.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return found

    def mlp(self, x: torch.Tensor) -> torch.Tensor:
        if self.spelling == "flattened":
            flat: torch.Tensor = self.down(F.gelu(self.up(x.reshape(-1, WIDTH))))
            return flat.reshape(x.shape)
        found: torch.Tensor = self.down(F.gelu(self.up(x)))
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        match self.spelling:
            case "post-norm":
                x = self.before(x + self.attend(x))
                x = self.behind(x + self.mlp(x))
            case "parallel":
                y = self.before(x)
                x = x + self.attend(y) + self.mlp(y)
            case _:
                x = x + self.attend(self.before(x))
                x = x + self.mlp(self.behind(x))
        return x


class TorchLayer(nn.Module):
    """PyTorch's own layer, with the sequence in front."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 24, 0.0, batch_first=False, norm_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layer(x)
        return found


class Vit(nn.Module):
    """Tokens with learned positions, layers, and heads that read all tokens in several ways."""

    def __init__(self, spelling: str = "plain", positions_between: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.sequence_first = spelling == "sequence first"
        self.layers = nn.ModuleList(
            TorchLayer() if self.sequence_first else Layer(spelling) for _ in range(LAYERS)
        )
        self.class_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        self.between = positions_between
        self.grid = nn.Conv2d(WIDTH, 3, 3, padding=1)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], 1) + self.positions

    def read(self, x: torch.Tensor, middle: torch.Tensor) -> tuple[torch.Tensor, ...]:
        grid = x[:, 1:].transpose(1, 2).reshape(x.shape[0], WIDTH, 5, 5)
        return x[:, 0], self.grid(grid), middle.mean(1), x

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.embed(x)
        middle = x
        if self.sequence_first:
            x = x.transpose(0, 1)
        for at, layer in enumerate(self.layers):
            x = layer(x)
            if self.between:
                x = x + self.positions
            if at == 1:
                middle = x
        if self.sequence_first:
            x, middle = x.transpose(0, 1), middle.transpose(0, 1)
        return self.read(x, middle)


SPELLINGS = ("plain", "eager", "flattened", "post-norm", "parallel", "sequence first", "unbound")


def by_hand(model: Vit, x: torch.Tensor, schedule: dict[int, int], protect: int) -> tuple[torch.Tensor, ...]:
    """Run a plain model layer by layer, and merge ``schedule[layer]`` tokens behind each attention."""
    x = model.embed(x)
    size = torch.ones(x.shape[:2], dtype=x.dtype)
    matchings: list[Matching] = []
    middle = x

    def all_tokens(t: torch.Tensor) -> torch.Tensor:
        for matching in reversed(matchings):
            t = unmerged(t, matching)
        return t

    for at, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        y = layer.before(x)
        q, k, _ = layer.heads(y)
        x = x + layer.attend(y, size)
        if at in schedule:
            matchings.append(match([k.sum(1), q.sum(1)], schedule[at], protect, size))
            x, size = merged(x, size, matchings[-1])
        x = x + layer.mlp(layer.behind(x))
        if at == 1:
            middle = all_tokens(x)
    return model.read(all_tokens(x), middle)
