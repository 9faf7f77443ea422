"""Templates around attention: blocks of a transformer of width 384; sizes are tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.fusion.templates import Template

__all__ = ["TEMPLATES"]

WIDTH, HEADS, LATENTS = 384, 6, 32
SIZES = (197, 1370)


class _Block(nn.Module):
    """The last block of an image classifier; ``read`` says what is read of it."""

    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.read = read
        self.one, self.two, self.norm = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return what is read of the block."""
        b, n, _ = x.shape
        parts = self.qkv(self.one(x)).reshape(b, n, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        x = x + self.out(attended.transpose(1, 2).reshape(b, n, WIDTH))
        return self.read(self.norm(x + self.down(F.gelu(self.up(self.two(x))))))


class _Attention(nn.Module):
    """Attention with a projection each for queries, keys and values; queries may be learned."""

    def __init__(self, latents: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.latents = nn.Parameter(torch.randn(1, LATENTS, WIDTH)) if latents else None

    def forward(self, keys: Tensor, queries: Tensor | None = None) -> Tensor:
        """Return the heads' results."""
        source = queries if queries is not None else self.latents if self.latents is not None else keys
        q, k, v = (
            f(x).reshape(1, x.shape[1], HEADS, WIDTH // HEADS).transpose(1, 2)
            for f, x in ((self.q, source), (self.k, keys), (self.v, keys))
        )
        return F.scaled_dot_product_attention(q, k, v)


class _Spelled(nn.Module):
    """Attention product by product, with a causal mask or without; or without a softmax."""

    def __init__(self, causal: bool, softmax: bool) -> None:
        super().__init__()
        self.causal, self.softmax = causal, softmax

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the heads' results."""
        scores: Tensor = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if self.causal:
            hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(hidden, -torch.inf)
        return (scores.softmax(-1) if self.softmax else scores / k.shape[2]) @ v


class _Temperatures(nn.Module):
    """Attention whose scores have a learned factor for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.factor = nn.Linear(WIDTH, 3 * WIDTH), nn.Parameter(torch.rand(HEADS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the heads' results."""
        q, k, v = self.qkv(x).reshape(1, x.shape[1], 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed: Tensor = (q @ k.transpose(-1, -2) * self.factor).softmax(-1) @ v
        return mixed


class _Pooling(nn.Module):
    """Attention of a few learned queries, projected back; keys may be turned by their place."""

    def __init__(self, queries: int, rotary: bool) -> None:
        super().__init__()
        self.rotary = rotary
        self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.queries = nn.Parameter(torch.randn(1, HEADS, queries, WIDTH // HEADS))

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled tokens."""
        k, v = (f(x).reshape(1, x.shape[1], HEADS, -1).transpose(1, 2) for f in (self.k, self.v))
        if self.rotary:
            angles = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * 0.01
            a, b = k.chunk(2, -1)
            k = k * angles.cos() + torch.cat([-b, a], -1) * angles.sin()
        found = F.scaled_dot_product_attention(self.queries, k, v)
        pooled: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return pooled


class _Blend(nn.Module):
    """Attention whose weights are blended with the identity and their mean, or with those of positions."""

    eye: Tensor

    def __init__(self, tokens: int, positions: bool) -> None:
        super().__init__()
        self.share, self.skip, self.mean = (nn.Parameter(torch.rand(HEADS, 1, 1)) for _ in range(3))
        self.table = nn.Parameter(torch.randn(HEADS, tokens, tokens)) if positions else None
        self.register_buffer("eye", torch.eye(tokens))

    def forward(self, x: Tensor) -> Tensor:
        """Return the heads' results."""
        q = x.reshape(1, x.shape[1], HEADS, -1).transpose(1, 2)
        weights: Tensor = (q @ q.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5).softmax(-1)
        if self.table is None:
            return (self.share * weights + self.skip * self.eye - self.mean / x.shape[1]) @ q
        gate = torch.sigmoid(self.share)
        weights = (1 - gate) * weights + gate * self.table.softmax(-1)
        return weights / weights.sum(-1, keepdim=True) @ q


class _Padded(nn.Module):
    """Self-attention to the first three quarters of a sequence, or to three of every four tokens."""

    seen: Tensor

    def __init__(self, tokens: int, first: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        places = torch.arange(tokens)
        self.register_buffer("seen", places < tokens * 3 // 4 if first else places % 4 != 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the heads' results."""
        q, k, v = (f(x).reshape(1, x.shape[1], HEADS, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.seen[None])


class _Decoder(nn.Module):
    """Steps of cross-attention to a fixed source, which every step projects."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, source: Tensor, token: Tensor, steps: Tensor) -> Tensor:
        """Return the last token."""
        for _ in range(int(steps)):
            scores = self.q(token) @ self.k(source).transpose(-1, -2) / 20.0
            token = token + scores.softmax(-1) @ self.v(source)
        return token


class _OneHead(nn.Module):
    """Self-attention of one head that is as wide as the model, and its output projection."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return the projected result."""
        projected: Tensor = self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))
        return projected


class _Closed(nn.Module):
    """A projection, and beside it cross-attention behind a gate that is zero."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.cross = nn.Linear(WIDTH, WIDTH), _Attention(False)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the sum."""
        total: Tensor = self.plain(x) + torch.tanh(self.gate) * self.cross(y, x).transpose(1, 2).flatten(2)
        return total


class _Scale(nn.Module):
    """A projection and a layer's scale behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.linspace(0.1, 1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled projection."""
        projected: Tensor = self.out(x)
        return projected * self.scale


def _scale(tokens: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return _Scale().eval(), (_tokens(tokens, 0),)


def _block(read: Callable[[Tensor], Tensor]) -> Callable[[int], tuple[nn.Module, tuple[Tensor, ...]]]:
    return lambda tokens: (_Block(read).eval(), (_tokens(tokens, 0),))


def _attention(latents: bool, sources: int) -> Callable[[int], tuple[nn.Module, tuple[Tensor, ...]]]:
    return lambda tokens: (_Attention(latents).eval(), tuple(_tokens(tokens, k) for k in range(sources)))


def _spelled(
    causal: bool = False, softmax: bool = True
) -> Callable[[int], tuple[nn.Module, tuple[Tensor, ...]]]:
    def build(tokens: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
        given = (_tokens(tokens, seed).reshape(1, tokens, HEADS, -1).transpose(1, 2) for seed in range(3))
        return _Spelled(causal, softmax).eval(), tuple(x.contiguous() for x in given)

    return build


def _pooling(queries: int, rotary: bool = False) -> Callable[[int], tuple[nn.Module, tuple[Tensor, ...]]]:
    return lambda tokens: (_Pooling(queries, rotary).eval(), (_tokens(tokens, 0),))


def _blend(positions: bool) -> Callable[[int], tuple[nn.Module, tuple[Tensor, ...]]]:
    return lambda tokens: (_Blend(tokens, positions).eval(), (_tokens(tokens, 0),))


def _padded(first: bool) -> Callable[[int], tuple[nn.Module, tuple[Tensor, ...]]]:
    return lambda tokens: (_Padded(tokens, first).eval(), (_tokens(tokens, 0),))


def _temperatures(tokens: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return _Temperatures().eval(), (_tokens(tokens, 0),)


def _decoder(tokens: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return torch.jit.script(_Decoder().eval()), (_tokens(tokens, 0), _tokens(1, 1), torch.tensor(16))


def _one_head(tokens: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return _OneHead().eval(), (_tokens(tokens, 0),)


def _closed(tokens: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return _Closed().eval(), (_tokens(tokens, 0), _tokens(tokens, 1))


def _tokens(count: int, seed: int) -> Tensor:
    return torch.randn(1, count, WIDTH, generator=torch.Generator().manual_seed(seed))


def _first(x: Tensor) -> Tensor:
    return x[:, 0]


def _last(x: Tensor) -> Tensor:
    return x[:, -1]


CLASS, LANGUAGE = "timm vit, deit; BERT", "Llama with one logit"
WIDE = "decoders of latent diffusion"

TEMPLATES = (
    Template("attention, spelled out", "fused-attention", _spelled(), SIZES, "older vision transformers"),
    Template("causal attention, spelled out", "fused-attention", _spelled(True), SIZES, "older decoders"),
    Template("attention without a softmax", "reassociation", _spelled(False, False), SIZES, "ADEM-VL"),
    Template("last block read at the class token", "unread-queries", _block(_first), SIZES, CLASS),
    Template("last block read at the last token", "unread-queries", _block(_last), SIZES, LANGUAGE),
    Template("q, k, v of one source", "shared-projections", _attention(False, 1), SIZES, "BERT, Llama"),
    Template("k, v of one source", "shared-projections", _attention(False, 2), SIZES, "Whisper"),
    Template("layer scale", "folded-scales", _scale, SIZES, "DINOv2, CaiT"),
    Template("temperatures of scores", "folded-scales", _temperatures, SIZES, "attention with temperatures"),
    Template("one query pools", "weight-absorption", _pooling(1), SIZES, "SigLIP, CaiT; BERT"),
    Template("one query, rotary keys", "weight-absorption", _pooling(1, True), SIZES, "Llama with one logit"),
    Template("latents pool", "weight-absorption", _pooling(LATENTS), SIZES, "Perceiver, Q-Former"),
    Template("identity and mean in weights", "affine-weights", _blend(False), SIZES, "shaped attention"),
    Template("positions in weights", "affine-weights", _blend(True), SIZES, "ConViT"),
    Template("padded keys", "unseen-keys", _padded(True), SIZES, "sequences of a fixed length"),
    Template("scattered unseen keys", "unseen-keys", _padded(False), SIZES, "tokens switched off"),
    Template("one head, q and k", "weight-absorption", _one_head, SIZES, WIDE),
    Template("one head, v and output", "folded-outputs", _one_head, SIZES, WIDE),
    Template("closed gate", "dead-branches", _closed, SIZES, "gated cross-attention"),
    Template("source of a loop", "loop-invariants", _decoder, SIZES, "scripted decoders", targets=("onnx",)),
    Template("projected latents", "static-operands", _attention(True, 1), SIZES, "Perceiver, Q-Former"),
)
