"""The figures about outliers, on numbers whose figures are known and on graphs of known structure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import rewriter
from rewriter.kernels.softmax.definition import Operands, softmax_attention
from rewriter.program.program import Program
from rewriter.verify.activations import recorded
from rewriter.verify.operands import site_operands
from rewriter.verify.outliers import block_output, idle_heads, infinity_norm, kurtosis
from tests.kernels.operands import CAUSAL


def test_infinity_norm_is_the_largest_magnitude() -> None:
    assert infinity_norm(np.array([1.0, -7.5, 3.0], np.float16)) == 7.5
    assert infinity_norm(np.zeros((0, 3))) == 0


def test_kurtosis_of_known_distributions() -> None:
    x = np.random.default_rng(0).normal(size=200_000)
    assert kurtosis(x) == pytest.approx(3, abs=0.05)
    assert kurtosis(1e4 * x + 77) == pytest.approx(kurtosis(x), rel=1e-6)
    assert kurtosis(np.random.default_rng(0).uniform(size=200_000)) == pytest.approx(1.8, abs=0.01)
    spike = np.zeros(1001, np.float32)
    spike[5] = 3e4
    assert kurtosis(spike) == pytest.approx(999, rel=0.01)
    assert kurtosis(np.ones(5)) == 0


def attending(mass: list[float], queries: int = 3) -> Operands:
    """Return operands whose heads each give so much of their weight to the last of four keys."""
    logits = (
        torch.tensor([[(1 - m) / 3] * 3 + [m] for m in mass]).log()[None, :, None].expand(1, -1, queries, 4)
    )
    zeros = torch.zeros(1, len(mass), queries, 2)
    return Operands(zeros, torch.zeros(1, len(mass), 4, 2), torch.zeros(1, len(mass), 4, 2), logits)


def test_heads_that_give_most_weight_to_one_token_are_idle() -> None:
    x = attending([0.25, 0.49, 0.51, 0.98])
    assert idle_heads(x) == 0.5
    assert idle_heads(x, above=0.97) == 0.25 and idle_heads(x, above=0.1) == 1


def test_heads_whose_queries_look_at_different_tokens_are_not_idle() -> None:
    eye = 50 * torch.eye(4)[None, None]
    assert idle_heads(Operands(eye, eye, eye)) == 0


def test_queries_that_see_no_key_do_not_count_and_the_band_does() -> None:
    x = attending([0.9])
    assert x.bias is not None
    bias = x.bias.clone()
    bias[:, :, 1] = -torch.inf
    assert idle_heads(Operands(x.q, x.k, x.v, bias)) == 1
    q = torch.zeros(1, 1, 2, 2)
    assert idle_heads(Operands(q, q, q, band=CAUSAL), above=0.7) == 1  # (1 + 1/2) / 2 on the first
    assert idle_heads(Operands(q, q, q), above=0.7) == 0


class Blocks(nn.Module):
    """Two blocks: the residual is added to a projection that is scaled, and to a normalised one."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(8, 24) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.norm, self.scale = nn.LayerNorm(8), nn.Parameter(torch.rand(8))
        self.sums: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sums = []
        for at, (qkv, out) in enumerate(zip(self.qkv, self.out, strict=True)):
            q, k, v = (t.reshape(*x.shape[:2], 2, 4).transpose(1, 2) for t in qkv(x).chunk(3, -1))
            y = ((q @ k.transpose(2, 3) / 2).softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
            x = x + (out(y) * self.scale if at == 0 else self.norm(out(y)))
            self.sums.append(x)
        return x * 2


def program(kind: str, block: Blocks, x: Tensor, where: Path) -> Program:
    if kind == "fx":
        return rewriter.trace(block, (x,), dynamic_shapes=({1: Dim("n", min=2, max=99)},))
    torch.onnx.export(
        block, (x,), where / "m.onnx", dynamo=False, input_names=["x"], dynamic_axes={"x": {1: "n"}}
    )
    return rewriter.load(where / "m.onnx")


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_the_residual_sum_of_each_block_is_found(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    block, x = Blocks().eval(), torch.randn(2, 5, 8)
    p = program(kind, block, x, tmp_path)
    names = [block_output(p, site) for site in p.sites]
    assert len(names) == 2 and None not in names
    found = p.extract(p.graph.inputs, [n for n in names if n])({p.graph.inputs[0]: x.numpy()})
    block(x)
    for sum_, got in zip(block.sums, found, strict=True):
        np.testing.assert_allclose(got, sum_.detach().numpy(), rtol=1e-4, atol=1e-5)


class Alone(nn.Module):
    """Attention that nothing goes around."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = (x @ x.transpose(1, 2)).softmax(-1) @ x * 2
        return result


def test_without_a_residual_there_is_no_sum() -> None:
    p = rewriter.trace(Alone(), (torch.randn(1, 5, 8),))
    assert [block_output(p, site) for site in p.sites] == [None]


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_operands_are_those_of_the_site(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    p = program(kind, Blocks().eval(), x := torch.randn(2, 5, 8), tmp_path)
    (arrays,) = recorded(p, p.sites, [(x.numpy(),)])
    for site in p.sites:
        found = softmax_attention(site_operands(p, site, arrays))
        native = arrays[site.output]
        together = found.transpose(1, 2).reshape(2, 5, 8) if native.ndim == 3 else found
        np.testing.assert_allclose(together.detach().numpy(), native, rtol=1e-4, atol=1e-5)
