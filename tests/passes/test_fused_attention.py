"""Attention that is spelled out: one operator where that is exact, and left alone where it is one already."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rewriter
from rewriter.passes import FusedAttention, parse_rules
from rewriter.program.program import Program
from rewriter.rules import fuse

HEADS, FEATURES = 4, 8

Attend = Callable[["Spelled", Tensor, Tensor, Tensor], Tensor]


class Spelled(nn.Module):
    """Attention by ``attend(module, q, k, v)``."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attend = attend
        self.factor = nn.Parameter(torch.rand(HEADS, 1, 1) + 0.5)
        self.mix = nn.Parameter(torch.randn(HEADS, HEADS))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend(self, q, k, v)


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-1, -2) / math.sqrt(FEATURES)


def by_einsum(m: Spelled, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = torch.einsum("bhid,bhjd->bhij", q * FEATURES**-0.5, k).softmax(-1)
    return torch.einsum("bhij,bhjd->bihd", weights, v).flatten(2)


def causal(m: Spelled, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    return scores(q, k).masked_fill(~seen, -math.inf).softmax(-1) @ v


def by_exponentials(m: Spelled, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    s = scores(q, k)
    e = torch.exp(s - s.amax(-1, keepdim=True))
    return (e / e.sum(-1, keepdim=True)) @ v


def divided_late(m: Spelled, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    e = scores(q, k).exp()
    return (e @ v) / e.sum(-1, keepdim=True)


def repeated(m: Spelled, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (x[:, : HEADS // 2].repeat_interleave(2, 1) for x in (k, v))
    return scores(q, k).softmax(-1) @ v


def read_elsewhere(m: Spelled, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = scores(q, k).softmax(-1)
    return torch.cat([weights @ v, weights.amax((-1,), keepdim=True)], -1)


FIRES: dict[str, Attend] = {
    "matmuls": lambda m, q, k, v: scores(q, k).softmax(-1) @ v,
    "einsum, heads joined": by_einsum,
    "a mask": causal,
    "exponentials and their sum": by_exponentials,
    "a temperature by head": lambda m, q, k, v: (scores(q, k) * m.factor).softmax(-1) @ v,
    "keys of several heads": repeated,
    "divided after the values": divided_late,
}

KEEPS: dict[str, Attend] = {
    "one operator already": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v),
    "one operator, keys masked": lambda m, q, k, v: F.scaled_dot_product_attention(
        q, k, v, attn_mask=(torch.arange(k.shape[2]) < 3)[None]
    ),
    "weights that are read": read_elsewhere,
    "weights that are mixed": lambda m, q, k, v: (
        torch.einsum("bhij,hg->bgij", scores(q, k).softmax(-1), m.mix) @ v
    ),
    "over the queries": lambda m, q, k, v: scores(q, k).softmax(-2) @ v,
    "no softmax": lambda m, q, k, v: scores(q, k).relu() @ v,
}


def operands(tokens: int = 7, keys: int = 11) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(2, HEADS, n, FEATURES, generator=g) for n in (tokens, keys, keys))
    return q, k, v


def program_of(attend: Attend, kind: str, folder: Path) -> Program:
    module = Spelled(attend).eval()
    if kind == "fx":
        return rewriter.trace(module, operands())
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        path = folder / "m.onnx"
        torch.onnx.export(module, operands(), str(path), dynamo=False, opset_version=17)
    return rewriter.load(path)


@pytest.mark.parametrize("name", FIRES)
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_fires(name: str, kind: str, tmp_path: Path) -> None:
    program = program_of(FIRES[name], kind, tmp_path)
    new, record = fuse(program, [FusedAttention()])
    assert [m.committed for m in record.matches] == [True]
    for a, b in zip(new.run(*operands()), program.run(*operands()), strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-5, atol=1e-6)
    if kind == "fx":
        assert not fuse(new, [FusedAttention()])[1].matches, "what it writes is one operator"


@pytest.mark.parametrize("name", KEEPS)
@pytest.mark.parametrize("kind", ["fx"])
def test_keeps(name: str, kind: str, tmp_path: Path) -> None:
    program = program_of(KEEPS[name], kind, tmp_path)
    new, record = fuse(program, [FusedAttention()])
    assert new is program and not record.committed


@pytest.mark.parametrize(("kind", "committed"), [("fx", 1), ("onnx", 0)])
def test_exact_fuses_for_pytorch_only(kind: str, committed: int, tmp_path: Path) -> None:
    program = program_of(FIRES["matmuls"], kind, tmp_path)
    _, record = fuse(program, parse_rules("exact") or ())
    found = [m for m in record.matches if m.rule == "fused-attention"]
    assert len(found) == 1 and sum(m.committed for m in found) == committed
