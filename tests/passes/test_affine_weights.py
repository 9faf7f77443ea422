"""What is blended into the weights of attention: where it moves behind the values, and where it stays."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rewriter
from rewriter.passes import AffineWeights, WindowAttention
from rewriter.program.program import Program
from rewriter.rules import Fusion, blended, fuse

HEADS, FEATURES = 3, 8

Blend = Callable[["Blended", Tensor, Tensor], Any]


class Blended(nn.Module):
    """Attention whose weights are changed by ``blend(module, weights, queries)``."""

    eye: Tensor
    places: Tensor

    def __init__(self, blend: Blend, tokens: int, groups: int = HEADS, causal: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blend, self.groups, self.causal, self.tokens = blend, groups, causal, tokens
        self.skip, self.share = (nn.Parameter(torch.rand(HEADS, 1, 1) + 0.1) for _ in range(2))
        self.uniform = nn.Parameter(torch.rand(HEADS, 1, 1) / tokens)
        self.table = nn.Parameter(torch.randn(HEADS, tokens, tokens))
        self.gates = nn.Linear(FEATURES, 1)
        self.register_buffer("eye", torch.eye(tokens))
        self.register_buffer("places", torch.randn(1, tokens, tokens, 3))
        self.position = nn.Linear(3, HEADS)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
        if self.groups != HEADS:
            k, v = (x.repeat_interleave(HEADS // self.groups, 1) for x in (k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(FEATURES)
        if self.causal:
            hidden = torch.ones(self.tokens, self.tokens).triu(1).bool()
            scores = scores.masked_fill(hidden, -math.inf)
        weights = self.blend(self, scores.softmax(-1), q)
        return weights @ v if isinstance(weights, Tensor) else (weights[0] @ v, weights[1])


def convit(m: Blended, p: Tensor, q: Tensor) -> Tensor:
    gate = torch.sigmoid(m.skip)[None]
    mixed = (1 - gate) * p + gate * m.position(m.places).permute(0, 3, 1, 2).softmax(-1)
    return mixed / mixed.sum(-1, keepdim=True)  # type: ignore[no-any-return]


SUM, OWN, MATRIX = "the sum of its values", "its values", "products with a known matrix"
FIRES: dict[str, tuple[Blend, str]] = {
    "identity": (lambda m, p, q: m.share * p + m.skip * m.eye, OWN),
    "identity, other order": (lambda m, p, q: m.eye * m.skip + p, OWN),
    "identity that is subtracted": (lambda m, p, q: p / 2 - torch.eye(m.tokens) / 4, OWN),
    "identity by query": (lambda m, p, q: p + torch.sigmoid(m.gates(q)) * m.eye, OWN),
    "shaped": (lambda m, p, q: m.share * p + m.skip * m.eye - m.uniform, f"{SUM}, {OWN}"),
    "more of what is not the mean": (lambda m, p, q: p + m.share * (p - 1 / m.tokens), SUM),
    "a number": (lambda m, p, q: 2 * p + 0.1, SUM),
    "a factor": (lambda m, p, q: -(p * m.share), "a factor"),
    "a factor by query": (lambda m, p, q: p / (2 + torch.tanh(m.gates(q))), "a factor"),
    "positions": (lambda m, p, q: p + m.table.softmax(-1), MATRIX),
    "positions by gates, renormalised": (convit, MATRIX),
}


def operands(tokens: int, groups: int = HEADS, batch: int = 2) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(tokens)
    return tuple(torch.randn(batch, h, tokens, FEATURES, generator=g) for h in (HEADS, groups, groups))


def program_of(module: nn.Module, given: tuple[Tensor, ...], kind: str, folder: Path) -> Program:
    if kind == "fx":
        return rewriter.trace(module.eval(), given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), given, str(folder / "m.onnx"), dynamo=False, opset_version=17)
    return rewriter.load(folder / "m.onnx")


def applied(program: Program) -> tuple[Program, Fusion]:
    return fuse(program, [AffineWeights()])


def same(new: Program, old: Program, given: tuple[Tensor, ...]) -> None:
    for a, b in zip(new.run(*given), old.run(*given), strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FIRES)
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_fires(name: str, kind: str, tmp_path: Path) -> None:
    blend, what = FIRES[name]
    given = operands(7)
    program = program_of(Blended(blend, 7), given, kind, tmp_path)
    assert [s.traits for s in program.sites] == [("weight-function",)]
    new, record = applied(program)
    (found,) = record.committed
    assert found.gain == f"plain attention, and {what} beside it"
    (site,) = new.sites
    assert site.kind == "attention" and not site.traits
    same(new, program, given)
    again, record = applied(new)
    assert again is new and not record.matches


@pytest.mark.parametrize(("tokens", "groups", "causal"), [(1, HEADS, False), (2, 1, True), (65, 1, True)])
def test_lengths_groups_and_masks(tokens: int, groups: int, causal: bool, tmp_path: Path) -> None:
    given = operands(tokens, groups)
    blend = FIRES["shaped"][0]
    program = program_of(Blended(blend, tokens, groups, causal), given, "fx", tmp_path)
    new, record = applied(program)
    assert len(record.committed) == len(program.sites)
    same(new, program, given)


def test_what_is_left_takes_forms(tmp_path: Path) -> None:
    given = operands(12)
    program = program_of(Blended(FIRES["identity"][0], 12, causal=True), given, "fx", tmp_path)
    window = WindowAttention(window=64, sinks=0)
    assert window(program) is program, "a site with changed weights is not for it"
    new, _ = applied(program)
    (site,) = new.sites
    assert site.facts.only_band
    short = window(new)
    assert short is not new
    same(short, program, given)


def test_half_precision(tmp_path: Path) -> None:
    given = tuple(x.to(torch.bfloat16) for x in operands(9))
    program = program_of(Blended(FIRES["shaped"][0], 9).to(torch.bfloat16), given, "fx", tmp_path)
    new, record = applied(program)
    assert len(record.committed) == 1
    assert {v.dtype for v in new.graph.values.values()} == {"bfloat16"}


KEEPS: dict[str, tuple[Blend, str]] = {
    "weights that are read": (lambda m, p, q: (m.share * p + m.skip * m.eye, p), "are read elsewhere, too"),
    "a power": (lambda m, p, q: p**2 + m.eye, "no sum of a share of the softmax"),
    "the softmax twice": (lambda m, p, q: p * (p + m.eye), "no sum of a share of the softmax"),
    "its own largest weight": (lambda m, p, q: p / p.amax(-1, keepdim=True), "no sum of a share"),
    "other sums": (lambda m, p, q: (p + m.eye) / p[:, :1].sum(-1, keepdim=True), "no sum of a share"),
    "scaled key by key": (lambda m, p, q: p * m.table, "scaled key by key"),
}


@pytest.mark.parametrize("name", KEEPS)
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_keeps(name: str, kind: str, tmp_path: Path) -> None:
    blend, reason = KEEPS[name]
    program = program_of(Blended(blend, 7), operands(7), kind, tmp_path)
    new, record = applied(program)
    assert new is program
    assert reason in " ".join(m.reason or "" for m in record.matches)


def test_keeps_an_unknown_number_of_tokens() -> None:
    class Free(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            n = q.shape[2]
            return ((q @ k.transpose(-1, -2)).softmax(-1) / 2 + torch.eye(n)) @ v

    n = torch.export.Dim("n", min=2, max=64)
    program = rewriter.trace(Free(), operands(7), dynamic_shapes=({2: n}, {2: n}, {2: n}))
    new, record = applied(program)
    assert new is program
    assert "is not known" in (record.matches[0].reason or "")


def test_a_matrix_is_taken_apart() -> None:
    rng = np.random.default_rng(0)
    every, own = rng.integers(-5, 5, (2, 5)), rng.integers(1, 5, (2, 5))
    whole = every[:, :, None] + own[:, :, None] * np.eye(5)
    found = blended._split(whole)
    assert found.full is None and found.every is not None and found.own is not None
    assert (found.every == every).all() and (found.own == own).all()
    assert (found.total(5) == whole.sum(-1)).all()
    whole[1, 4, 2] += 1
    assert np.array_equal(blended._split(whole).full, whole)  # type: ignore[arg-type]
    assert blended._split(whole[:, :4]).full is not None, "no diagonal without as many queries as keys"
