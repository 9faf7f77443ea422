"""Passes on models with soft caps and sinks, and on models whose sites a form is not legal for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import rewriter
from rewriter.passes import SoftmaxAttention, WindowAttention

HEADS, GROUPS, SIZE = 4, 2, 8
WIDTH = HEADS * SIZE


class Block(nn.Module):
    """Causal self-attention with grouped heads, spelled out as model code spells it."""

    def __init__(self, softcap: float | None = None, sinks: bool = False) -> None:
        super().__init__()
        self.q, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(WIDTH, GROUPS * SIZE, bias=False) for _ in range(2))
        self.softcap = softcap
        self.sinks = nn.Parameter(torch.randn(HEADS)) if sinks else None

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, HEADS, SIZE).transpose(1, 2)
        k, v = (self._repeated(layer(x).view(b, n, GROUPS, SIZE)) for layer in (self.k, self.v))
        scores = q @ k.transpose(2, 3) * SIZE**-0.5
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        scores = scores + torch.full((n, n), torch.finfo(x.dtype).min).triu(1)
        if self.sinks is None:
            weights = F.softmax(scores, dim=-1, dtype=torch.float32)
        else:
            logits = self.sinks.reshape(1, -1, 1, 1).expand(b, -1, n, -1)
            joined = torch.cat([scores, logits], dim=-1)
            joined = joined - joined.max(dim=-1, keepdim=True).values
            weights = F.softmax(joined, dim=-1)[..., :-1]
        result: Tensor = self.o((weights @ v).transpose(1, 2).reshape(b, n, WIDTH))
        return result

    def _repeated(self, x: Tensor) -> Tensor:
        b, n, groups, size = x.shape
        x = x.transpose(1, 2)[:, :, None].expand(b, groups, HEADS // GROUPS, n, size)
        return x.reshape(b, HEADS, n, size)


BLOCKS: dict[str, tuple[float | None, bool, tuple[str, ...]]] = {
    "soft-capped": (5.0, False, ("softcap",)),
    "sinks": (None, True, ("sink",)),
    "both": (5.0, True, ("softcap", "sink")),
}


def model(softcap: float | None, sinks: bool) -> Block:
    torch.manual_seed(0)
    return Block(softcap, sinks).eval()


def program(module: nn.Module, x: Tensor, kind: str, where: Path) -> rewriter.Program:
    """Return the module as an FX program, with one length or any, or as an ONNX file."""
    lengths = ({1: Dim("n", min=2, max=2048)},)
    if kind == "fx":
        return rewriter.trace(module, (x,))
    if kind == "fx, any length":
        return rewriter.trace(module, (x,), dynamic_shapes=lengths)
    torch.onnx.export(
        module,
        (x,),
        where / "model.onnx",
        dynamo=False,
        opset_version=17,
        input_names=["x"],
        output_names=["y"],
    )
    return rewriter.load(where / "model.onnx")


KINDS = ("fx", "fx, any length", "onnx")


def array(x: Any) -> np.ndarray:
    return np.asarray(x.detach() if isinstance(x, Tensor) else x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("softcap", "sinks", "traits"), BLOCKS.values(), ids=list(BLOCKS))
def test_exact_attention_keeps_the_model(
    softcap: float | None, sinks: bool, traits: tuple[str, ...], kind: str, tmp_path: Path
) -> None:
    module, x = model(softcap, sinks), torch.randn(2, 9, WIDTH)
    p = program(module, x, kind, tmp_path)
    (site,) = p.sites
    assert site.traits == traits and site.facts.mask == "causal" and int(site.kv_heads) == GROUPS
    step = SoftmaxAttention()
    new = step(p)
    assert step.report is not None and step.report.exact
    assert [s.reason for s in step.report.sites] == [None]
    np.testing.assert_allclose(array(new.run(x)[0]), array(module(x)), rtol=1e-4, atol=1e-5)
    if kind == "fx, any length":
        long = torch.randn(2, 31, WIDTH)
        np.testing.assert_allclose(array(new.run(long)[0]), array(module(long)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("softcap", "sinks", "traits"), BLOCKS.values(), ids=list(BLOCKS))
def test_windows_are_verified_and_have_their_exact_limit(
    softcap: float | None, sinks: bool, traits: tuple[str, ...], kind: str, tmp_path: Path
) -> None:
    module, x = model(softcap, sinks), torch.randn(2, 9, WIDTH)
    p = program(module, x, kind, tmp_path)
    narrow, wide = WindowAttention(window=3, sinks=1), WindowAttention(window=2048)
    assert not np.allclose(array(narrow(p).run(x)[0]), array(module(x)), atol=1e-3)
    np.testing.assert_allclose(array(wide(p).run(x)[0]), array(module(x)), rtol=1e-4, atol=1e-5)
    for step in (narrow, wide):
        assert step.report is not None
        assert [s.reason for s in step.report.sites] == [None]


class Several(nn.Module):
    """Attention, attention with mixed heads, pooling by a learned query, and linear attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(4))
        self.mix = nn.Parameter(torch.randn(HEADS, HEADS))
        self.query = nn.Parameter(torch.randn(1, HEADS, 1, SIZE))

    def forward(self, x: Tensor) -> Tensor:
        for at, layer in enumerate(self.qkv[:3]):
            q, k, v = self._heads(layer(x))
            if at == 2:
                q, k = F.elu(q) + 1, F.elu(k) + 1
                y = q @ (k.transpose(2, 3) @ v)
            else:
                scores = q @ k.transpose(2, 3) * SIZE**-0.5
                if at == 1:
                    scores = torch.einsum("gh,bhij->bgij", self.mix, scores)
                y = scores.softmax(-1) @ v
            x = x + y.transpose(1, 2).reshape(x.shape)
        _, k, v = self._heads(self.qkv[3](x))
        pooled = (self.query @ k.transpose(2, 3) * SIZE**-0.5).softmax(-1) @ v
        result: Tensor = pooled.reshape(x.shape[0], WIDTH)
        return result

    @staticmethod
    def _heads(x: Tensor) -> list[Tensor]:
        b, n, _ = x.shape
        return [t.reshape(b, n, HEADS, SIZE).transpose(1, 2) for t in x.chunk(3, -1)]


def test_what_a_form_is_not_legal_for_is_listed_with_the_reason() -> None:
    torch.manual_seed(0)
    module, x = Several().eval(), torch.randn(2, 7, WIDTH)
    p = rewriter.trace(module, (x,))
    assert [s.kind for s in p.sites] == ["attention", "attention", "linear-attention", "pooling"]
    exact, window = SoftmaxAttention(), WindowAttention(window=3)
    new = exact(p)
    window(p)
    assert exact.report is not None and window.report is not None
    assert [s.committed for s in exact.report.sites] == [True, False, False, True]
    assert [s.committed for s in window.report.sites] == [True, False, False, False]
    reasons = {s.site: s.reason for s in exact.report.refused}
    mixed, linear = p.sites[1], p.sites[2]
    assert reasons[mixed.id] == (f"{mixed.id} mixes its heads (head-mixing), which softmax does not compute")
    assert (reasons[linear.id] or "").startswith(f"{linear.id} is linear-attention (")
    pooling = {s.site: s.reason for s in window.report.refused}[p.sites[3].id]
    assert (pooling or "").endswith("; window is for attention")
    np.testing.assert_allclose(array(new.run(x)[0]), array(module(x)), rtol=1e-4, atol=1e-5)
