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
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.heads, self.places = nn.Parameter(torch.randn(HEADS, 1, 1)), nn.Parameter(torch.randn(TOKENS, 1))

    def forward(self, x: Tensor) -> Any:
        return self.formula(self, x)


def split(x: Tensor) -> Tensor:
    return x.reshape(2, -1, HEADS, WIDTH // HEADS).transpose(1, 2)


def temperature_before_softmax(m: Scaled, x: Tensor) -> Tensor:
    q, k = split(m.out(x)) / 0.5, split(m.plain(x))
    return (q @ k.transpose(-1, -2)).softmax(-1) @ k


def parts(m: Scaled, x: Tensor) -> Any:
    return m.qkv(x).reshape(2, -1, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0)


def attended(scores: Tensor, v: Tensor) -> Tensor:
    result: Tensor = scores.softmax(-1) @ v
    return result


def queries_of_a_joint_product(m: Scaled, x: Tensor) -> Tensor:
    q, k, v = parts(m, x)
    return attended((q * 0.25) @ k.transpose(-1, -2), v)


def queries_and_keys_of_a_joint_product(m: Scaled, x: Tensor) -> Tensor:
    q, k, v = (split(y) for y in m.qkv(x).chunk(3, -1))
    return attended((q * 0.5) @ (m.heads * k).transpose(-1, -2), v)


def temperatures_of_scores(m: Scaled, x: Tensor) -> Tensor:
    q, k, v = parts(m, x)
    return attended(q @ k.transpose(-1, -2) * m.heads, v)


def gates_of_results(m: Scaled, x: Tensor) -> Any:
    q, k, v = parts(m, x)
    gated = attended(q @ k.transpose(-1, -2), v) * m.heads.sigmoid()
    return m.plain(gated.transpose(1, 2).flatten(2))


def of_keys_alone(m: Scaled, x: Tensor) -> Tensor:
    k = split(m.out(x))
    return (x.reshape(k.shape) @ k.transpose(-1, -2) / 3).softmax(-1)


FIRES: dict[str, Formula] = {
    "layer scale": lambda m, x: x + m.out(x) * m.columns,
    "layer scale, other side, no bias": lambda m, x: x + m.columns * m.plain(x),
    "one factor per head": lambda m, x: split(m.out(x)) * m.heads,
    "head gates behind a view": lambda m, x: (split(m.plain(x)) * m.heads).transpose(1, 2).reshape(x.shape),
    "temperature": temperature_before_softmax,
    "a learned number lets a branch in": lambda m, x: x + m.columns[:1].tanh() * m.out(x),
    "gates of heads behind a function": lambda m, x: split(m.out(x)) * (2 * m.heads).sigmoid(),
    "a number": lambda m, x: m.out(x) * -3.0,
    "of some columns": lambda m, x: m.out(x)[..., 1:5] * 2.0,
    "zero": lambda m, x: m.out(x) * 0.0,
    "queries of a joint product": queries_of_a_joint_product,
    "queries and keys of a joint product": queries_and_keys_of_a_joint_product,
    "temperatures of scores": temperatures_of_scores,
    "gates of results": gates_of_results,
    "scores of projected keys": of_keys_alone,
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


def of_one_projection(m: Scaled, x: Tensor) -> Tensor:
    q = split(m.out(x))
    return attended(q @ q.transpose(-1, -2) * m.heads, split(m.plain(x)))


def scores_read_twice(m: Scaled, x: Tensor) -> Any:
    q, k, v = parts(m, x)
    scores = q @ k.transpose(-1, -2)
    return attended(scores * m.heads, v), scores


def queries_read_twice(m: Scaled, x: Tensor) -> Any:
    q, k, v = parts(m, x)
    return attended(q @ k.transpose(-1, -2) * m.heads, v), q.amax(-1)


def overlapping(m: Scaled, x: Tensor) -> Any:
    y = m.out(x)
    return y[..., :4] * m.columns[:4], y[..., 3:].tanh()


def by_place_of_a_key(m: Scaled, x: Tensor) -> Tensor:
    q, k, v = parts(m, x)
    return attended(q @ k.transpose(-1, -2) * m.places.T, v)


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
    "some columns twice": (overlapping, "read unscaled"),
    "queries are keys": (of_one_projection, ""),
    "scores read elsewhere": (scores_read_twice, "read unscaled"),
    "queries read elsewhere": (queries_read_twice, "read unscaled"),
    "by key": (by_place_of_a_key, ""),
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
