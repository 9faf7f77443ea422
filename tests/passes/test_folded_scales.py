"""Constant factors behind projections: which become part of the weights, and which stay."""

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
from rewriter.passes import FoldedScales
from rewriter.program.program import Program
from rewriter.rules import fuse
from tests.passes.test_unread_queries import HEADS, TOKENS, WIDTH, close, tokens

MUL = ("aten::mul.Tensor", "aten::div.Tensor", "ai.onnx::Mul", "ai.onnx::Div")

Formula = Callable[["Scaled", Tensor], Any]


class Scaled(nn.Module):
    def __init__(self, formula: Formula) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.formula = formula
        self.out, self.plain = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.columns = nn.Parameter(torch.randn(WIDTH))
        self.heads, self.places = nn.Parameter(torch.randn(HEADS, 1, 1)), nn.Parameter(torch.randn(TOKENS, 1))

    def forward(self, x: Tensor) -> Any:
        return self.formula(self, x)


def split(x: Tensor) -> Tensor:
    return x.reshape(2, -1, HEADS, WIDTH // HEADS).transpose(1, 2)


def temperature_before_softmax(m: Scaled, x: Tensor) -> Tensor:
    q, k = split(m.out(x)) / 0.5, split(m.plain(x))
    return (q @ k.transpose(-1, -2)).softmax(-1) @ k


FIRES: dict[str, Formula] = {
    "layer scale": lambda m, x: x + m.out(x) * m.columns,
    "layer scale, other side, no bias": lambda m, x: x + m.columns * m.plain(x),
    "one factor per head": lambda m, x: split(m.out(x)) * m.heads,
    "head gates behind a view": lambda m, x: (split(m.plain(x)) * m.heads).transpose(1, 2).reshape(x.shape),
    "temperature": temperature_before_softmax,
    "a learned number lets a branch in": lambda m, x: x + m.columns[:1].tanh() * m.out(x),
    "gates of heads behind a function": lambda m, x: split(m.out(x)) * (2 * m.heads).sigmoid(),
    "a number": lambda m, x: m.out(x) * -3.0,
    "zero": lambda m, x: m.out(x) * 0.0,
}


def program_of(formula: Formula, kind: str, folder: Path) -> Program:
    model = Scaled(formula).eval()
    if kind == "fx":
        return rewriter.trace(model, (tokens(),))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (tokens(),), str(folder / "m.onnx"), dynamo=False, opset_version=17)
    return rewriter.load(folder / "m.onnx")


@pytest.mark.parametrize("name", FIRES)
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_fires(name: str, kind: str, tmp_path: Path) -> None:
    program = program_of(FIRES[name], kind, tmp_path)
    new, record = fuse(program, [FoldedScales()])
    assert len(record.committed) == 1, record.matches
    close(new, program, tokens())
    assert len([n for n in new.graph.nodes if n.op in MUL]) < len(
        [n for n in program.graph.nodes if n.op in MUL]
    )
    path = tmp_path / ("new.pt2" if kind == "fx" else "new.onnx")
    new.save(path)
    close(rewriter.load(path), program, tokens())


def gelu(m: Scaled, x: Tensor) -> Tensor:
    y: Tensor = m.out(x)
    return 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))


def unscaled_too(m: Scaled, x: Tensor) -> Any:
    y = m.out(x)
    return y * m.columns, y


def packed(m: Scaled, x: Tensor) -> Tensor:
    first, second = torch.split(m.out.weight, [4, WIDTH - 4])
    result: Tensor = (x @ first.T) * m.columns[:4] + (x @ second.T).sum()
    return result


def tied(m: Scaled, x: Tensor) -> Tensor:
    return m.plain(x) * m.columns + m.plain(x + 1)  # type: ignore[no-any-return]


KEEPS: dict[str, tuple[Formula, str]] = {
    "unscaled, too": (unscaled_too, "read unscaled"),
    "tied weights": (tied, "held twice"),
    "part of a weight": (packed, "a part of a larger one"),
    "half of a gelu, spelled out": (gelu, ""),
    "divided by zero": (lambda m, x: m.out(x) / torch.zeros(WIDTH), "not finite"),
    "by a normalised row": (lambda m, x: m.out(x) * m.columns.softmax(0), ""),
    "by place": (lambda m, x: m.out(x) * m.places, ""),
    "by the input": (lambda m, x: m.out(x) * x.mean(), ""),
    "behind a function": (lambda m, x: m.out(x).relu() * m.columns, ""),
    "of some columns": (lambda m, x: m.out(x)[..., :4] * 2.0, ""),
}


@pytest.mark.parametrize("name", KEEPS)
def test_keeps(name: str, tmp_path: Path) -> None:
    formula, reason = KEEPS[name]
    program = program_of(formula, "fx", tmp_path)
    new, record = fuse(program, [FoldedScales()])
    assert new is program
    assert reason in " ".join(m.reason or "" for m in record.matches) and bool(reason) == bool(record.matches)


def test_factors_are_applied_to_their_own_columns(tmp_path: Path) -> None:
    """One head is switched off: its columns are zero, the others are as they were."""
    model = Scaled(FIRES["one factor per head"]).eval()
    model.heads.data[:] = 1.0
    model.heads.data[1] = 0.0
    program = rewriter.trace(model, (tokens(),))
    new, _ = fuse(program, [FoldedScales()])
    before, after = program.run(tokens())[0], new.run(tokens())[0]
    assert not np.asarray(after)[:, 1].any() and np.asarray(after)[:, 0].any()
    np.testing.assert_allclose(after, before, atol=1e-5)
