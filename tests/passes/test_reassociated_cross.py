"""Cross-attention without a softmax, written as a matrix of weights: products in the cheaper order."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rewriter
from rewriter.passes import ReassociatedAttention, Reassociation, parse_rules
from rewriter.program.program import Program
from rewriter.rules import fuse

HEADS, QUERIES, KEYS, FEATURES = 3, 40, 170, 16

Formula = Callable[[Tensor, Tensor, Tensor], Tensor]


class Cross(nn.Module):
    def __init__(self, formula: Formula) -> None:
        super().__init__()
        self.formula = formula

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.formula(q, k, v)


def normalised(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (F.elu(q) + 1) @ (F.elu(k) + 1).transpose(-1, -2)
    return (weights / weights.sum(-1, keepdim=True)) @ v


def read_elsewhere(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = q @ k.transpose(-1, -2)
    return torch.cat([weights, weights @ v], -1)


FORMULAS: dict[str, Formula] = {
    "normalised": normalised,
    "plain": lambda q, k, v: (q @ k.transpose(-1, -2)) @ v / KEYS,
    "silu of both": lambda q, k, v: (F.silu(q) @ F.silu(k).transpose(-1, -2) / FEATURES) @ v,
}


def operands(queries: int = QUERIES) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, HEADS, n, FEATURES, generator=g) for n in (queries, KEYS, KEYS))
    return q, k, v


def program_of(formula: Formula, given: tuple[Tensor, ...], kind: str, folder: Path) -> Program:
    model = Cross(formula).eval()
    if kind == "fx":
        return rewriter.trace(model, given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, given, str(folder / "m.onnx"), dynamo=False, opset_version=17)
    return rewriter.load(folder / "m.onnx")


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_many_queries(name: str, kind: str, tmp_path: Path) -> None:
    program = program_of(FORMULAS[name], operands(), kind, tmp_path)
    new = ReassociatedAttention()(program)
    assert new is not program
    shapes = [[str(n) for n in p.shape[-2:]] for p in new.prims().values()]
    assert [str(QUERIES), str(KEYS)] not in shapes, "there is no matrix of weights"
    for a, b in zip(new.run(*operands()), program.run(*operands()), strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-4, atol=1e-4)


def test_few_queries_stay(tmp_path: Path) -> None:
    program = program_of(FORMULAS["plain"], operands(2), "fx", tmp_path)
    assert ReassociatedAttention()(program) is program


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_as_a_rule(name: str, kind: str, tmp_path: Path) -> None:
    program = program_of(FORMULAS[name], operands(), kind, tmp_path)
    new, record = fuse(program, [r for r in parse_rules("exact") or () if isinstance(r, Reassociation)])
    assert [m.committed for m in record.matches] == [True]
    shapes = [[str(n) for n in p.shape[-2:]] for p in new.prims().values()]
    assert [str(QUERIES), str(KEYS)] not in shapes, "there is no matrix of weights"
    for a, b in zip(new.run(*operands()), program.run(*operands()), strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-4, atol=1e-4)


KEEPS: dict[str, tuple[Formula, int]] = {
    "few queries": (FORMULAS["plain"], 2),
    "a mask that is not causal": (lambda q, k, v: (q @ k.transpose(-1, -2)).triu(3) @ v, QUERIES),
    "weights that are read": (read_elsewhere, QUERIES),
}


@pytest.mark.parametrize("name", KEEPS)
def test_rule_keeps(name: str, tmp_path: Path) -> None:
    formula, queries = KEEPS[name]
    program = program_of(formula, operands(queries), "fx", tmp_path)
    new, record = fuse(program, [Reassociation()])
    assert new is program and not record.committed
