"""Attention as real code spells it: every spelling is raised from its FX graph, and rewritten exactly."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import rewriter
from rewriter.sites import AttentionSite

B, H, L, D = 2, 4, 16, 8
SCALE = 1 / math.sqrt(D)
INFINITY = float("inf")

Spelling = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def soft(scores: Tensor, v: Tensor) -> Tensor:
    return torch.softmax(scores, -1) @ v


def kt(k: Tensor) -> Tensor:
    return k.transpose(-2, -1)


def causal() -> Tensor:
    return torch.ones(L, L, dtype=torch.bool).tril()


def manual(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    s = q @ kt(k) * SCALE
    e = (s - s.amax(-1, keepdim=True)).exp()
    return (e / e.sum(-1, keepdim=True)) @ v


def after(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    s = q @ kt(k) * SCALE
    e = (s - s.amax(-1, keepdim=True)).exp()
    return (e @ v) / e.sum(-1, keepdim=True)


def heads_last(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    s = torch.einsum("blhd,bmhd->bhlm", q, k) * SCALE
    return torch.einsum("bhlm,bmhd->blhd", s.softmax(-1), v)


def flat(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    q, k, v = (x.reshape(B * H, L, D) for x in (q, k, v))
    return torch.bmm(torch.bmm(q, k.transpose(1, 2)).mul(SCALE).softmax(-1), v).view(B, H, L, D)


def baddbmm(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    q, k, v = (x.reshape(B * H, L, D) for x in (q, k, v))
    s = torch.baddbmm(m.expand(B * H, L, L), q, k.transpose(1, 2), beta=1.0, alpha=SCALE)
    return torch.bmm(s.softmax(-1), v).view(B, H, L, D)


def grouped(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    k, v = (x[:, :2].repeat_interleave(2, dim=1) for x in (k, v))
    return soft(q @ kt(k) * SCALE, v)


def grouped_expand(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    k, v = (x[:, :2, None].expand(B, 2, 2, L, D).reshape(B, H, L, D) for x in (k, v))
    return soft(q @ kt(k) * SCALE, v)


def split_cache(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    k, v = torch.cat([k, k * 0.5], 2), torch.cat([v, v * 0.5], 2)
    return soft(q @ kt(k) * SCALE, v)


def packed(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    x = torch.cat([t.transpose(1, 2).reshape(B, L, H * D) for t in (q, k, v)], -1)
    q, k, v = x.view(B, L, 3, H, D).permute(2, 0, 3, 1, 4).unbind(0)
    return soft(q @ kt(k) * SCALE, v).transpose(1, 2).reshape(B, L, H * D)


def guarded(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    weights = (q @ kt(k) + m).softmax(-1)
    return torch.where(weights.isnan(), 0.0, weights) @ v


FIRES: dict[str, Spelling] = {
    "divided": lambda q, k, v, m: soft(q @ kt(k) / math.sqrt(D), v),
    "multiplied": lambda q, k, v, m: soft(q @ kt(k) * SCALE, v),
    "scale on the left": lambda q, k, v, m: soft(SCALE * (q @ kt(k)), v),
    "scale on q": lambda q, k, v, m: soft((q * SCALE) @ kt(k), v),
    "scale on k": lambda q, k, v, m: soft(q @ kt(k * SCALE), v),
    "root of the scale on both": lambda q, k, v, m: soft((q * SCALE**0.5) @ kt(k * SCALE**0.5), v),
    "no scale": lambda q, k, v, m: soft(q @ kt(k), v),
    "mask added": lambda q, k, v, m: soft(q @ kt(k) / math.sqrt(D) + m, v),
    "mask on the left": lambda q, k, v, m: soft(m + q @ kt(k) / math.sqrt(D), v),
    "two terms added": lambda q, k, v, m: soft(q @ kt(k) * SCALE + m + m.T, v),
    "where with -inf": lambda q, k, v, m: soft(torch.where(causal(), q @ kt(k), -INFINITY), v),
    "masked_fill": lambda q, k, v, m: soft((q @ kt(k)).masked_fill(~causal(), -INFINITY), v),
    "masked_fill with the smallest": lambda q, k, v, m: soft(
        (q @ kt(k)).masked_fill(~causal(), torch.finfo(torch.float32).min), v
    ),
    "positions compared": lambda q, k, v, m: soft(
        torch.where(torch.arange(L)[None] <= torch.arange(L)[:, None], q @ kt(k), -INFINITY), v
    ),
    "einsum": lambda q, k, v, m: torch.einsum(
        "bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).mul(SCALE).softmax(-1), v
    ),
    "einsum, heads last": heads_last,
    "3-D bmm": flat,
    "baddbmm": baddbmm,
    "softmax in float64": lambda q, k, v, m: (q @ kt(k)).double().softmax(-1).float() @ v,
    "exp over sum": manual,
    "normalised after the values": after,
    "transposed scores": lambda q, k, v, m: torch.softmax(k @ kt(q) * SCALE, -2).transpose(-2, -1) @ v,
    "groups by repeat_interleave": grouped,
    "groups by expand": grouped_expand,
    "cross attention": lambda q, k, v, m: soft(q[:, :, :5] @ kt(k) * SCALE, v),
    "cache joined": split_cache,
    "packed": packed,
    "sdpa": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v),
    "sdpa, causal": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "sdpa, bool mask": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m > -0.5),
    "sdpa, float mask": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m),
    "guarded": guarded,
    "exp of log_softmax": lambda q, k, v, m: (q @ kt(k)).log_softmax(-1).exp() @ v,
    "inactive dropout": lambda q, k, v, m: F.dropout((q @ kt(k)).softmax(-1), 0.5, training=False) @ v,
}

KEEPS: dict[str, tuple[Spelling, str]] = {
    "softmax over the queries": (lambda q, k, v, m: torch.softmax(q @ kt(k), -2) @ v, "over the queries"),
    "gated weights": (lambda q, k, v, m: (torch.softmax(q @ kt(k), -1) * m) @ v, "changed after the softmax"),
    "active dropout": (
        lambda q, k, v, m: F.dropout((q @ kt(k)).softmax(-1), 0.5, training=True) @ v,
        "is not followed by a sum",
    ),
}


class Module(torch.nn.Module):
    def __init__(self, spelling: Spelling) -> None:
        super().__init__()
        self.spelling = spelling

    def forward(self, q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
        return self.spelling(q, k, v, m)


def operands() -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    return (*(torch.randn(B, H, L, D, generator=g) for _ in range(3)), torch.randn(L, L, generator=g))


def traced(spelling: Spelling) -> rewriter.Program:
    return rewriter.trace(Module(spelling), operands())


@pytest.mark.parametrize("name", FIRES)
def test_fires_and_is_rewritten_exactly(name: str) -> None:
    program = traced(FIRES[name])
    assert [s.id for s in program.sites] == ["attention.0"], program.refused
    site: AttentionSite = program.sites[0]
    expected_kv = 2 if "groups" in name else H
    assert (site.heads.plain(), site.kv_heads.plain()) == (H, expected_kv)
    rewritten = rewriter.passes.SoftmaxAttention()(program)
    text = str([n.op for n in rewritten.graph.nodes])
    assert "scaled_dot_product_attention" in text
    assert "softmax" not in text
    inputs = operands()
    torch.testing.assert_close(rewritten.run(*inputs), program.run(*inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KEEPS)
def test_keeps(name: str) -> None:
    spelling, reason = KEEPS[name]
    program = traced(spelling)
    assert not program.sites
    assert any(reason in r.reason for r in program.refused), program.refused


@pytest.mark.parametrize(
    "name", [n for n in FIRES if any(w in n for w in ("tril", "where", "masked", "compared"))]
)
def test_causality_is_proved(name: str) -> None:
    assert traced(FIRES[name]).sites[0].facts.mask == "causal"
