"""Output projections of one head: folded into that of its values, or kept."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rewriter
from rewriter.passes import FoldedOutputs
from rewriter.program.program import Program
from rewriter.rules import Fusion, fuse

ASKED, GIVEN, QUERIES, KEYS = 10, 9, 7, 5


class OneHead(nn.Module):
    """Attention of one head and its output projection; ``how`` says what is special."""

    def __init__(self, how: str = "plain", features: int = 12, out: int = 8, heads: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how, self.heads = how, heads
        bias = how != "no bias"
        self.q, self.k = nn.Linear(ASKED, features), nn.Linear(GIVEN, features)
        self.v, self.o = nn.Linear(GIVEN, features, bias=bias), nn.Linear(features, out, bias=bias)

    def forward(self, x: Tensor, y: Tensor) -> Any:
        q, k, v = (
            f(z).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for f, z in ((self.q, x), (self.k, y), (self.v, y))
        )
        if self.how in ("plain", "no bias", "tokens first", "tied", "values read"):
            found = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
            if self.how == "masked":
                scores = scores.masked_fill(torch.ones(QUERIES, KEYS).triu(1).bool(), -math.inf)
            if self.how == "sink":
                scores = torch.cat([scores, torch.ones_like(scores[..., :1])], -1)
            weights = scores.softmax(-1)[..., :KEYS]
            found = weights @ v
        found = found.transpose(1, 2).flatten(2)
        if self.how == "tokens first":
            made = self.o(found.transpose(0, 1).reshape(-1, found.shape[-1]))
            return made.view(QUERIES, -1, made.shape[-1])
        made = self.o(found)
        more: dict[str, Callable[[], Tensor]] = {
            "result read": lambda: found,
            "weights read": lambda: weights,
            "values read": lambda: v,
            "tied": lambda: self.o(found.flip(1) + 1),
        }
        return (made, more[self.how]()) if self.how in more else made


def operands() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, QUERIES, ASKED, generator=g), torch.randn(2, KEYS, GIVEN, generator=g)


def program_of(module: nn.Module, kind: str, folder: Path, dynamic: bool = False) -> Program:
    if kind == "fx":
        dims = ({1: torch.export.Dim("n", min=2, max=64)}, {1: torch.export.Dim("m", min=2, max=64)})
        return rewriter.trace(module.eval(), operands(), dynamic_shapes=dims if dynamic else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), operands(), str(folder / "m.onnx"), dynamo=False, opset_version=17)
    return rewriter.load(folder / "m.onnx")


def applied(program: Program) -> tuple[Program, Fusion]:
    return fuse(program, [FoldedOutputs()])


def same(new: Program, old: Program) -> None:
    for a, b in zip(new.run(*operands()), old.run(*operands()), strict=True):
        torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["plain", "no bias", "masked", "sink", "tokens first"])
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_fires(how: str, kind: str, tmp_path: Path) -> None:
    program = program_of(OneHead(how), kind, tmp_path)
    new, record = applied(program)
    (found,) = record.committed
    assert (found.gain or "").startswith("no output projection: ")
    (site,) = new.sites
    assert site.v_dim.known() == 8
    same(new, program)
    path = tmp_path / ("new.pt2" if kind == "fx" else "new.onnx")
    new.save(path)
    same(rewriter.load(path), program)
    again, record = applied(new)
    assert again is new and not record.matches


def test_dynamic_lengths(tmp_path: Path) -> None:
    program = program_of(OneHead(), "fx", tmp_path, dynamic=True)
    new, record = applied(program)
    assert len(record.committed) == 1
    for n, m in ((7, 5), (2, 63)):
        x, y = torch.randn(2, n, ASKED), torch.randn(2, m, GIVEN)
        for a, b in zip(new.run(x, y), program.run(x, y), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


KEEPS = {
    "result read": "is read elsewhere, too",
    "weights read": "its scores or weights are read elsewhere, too",
    "values read": "is read elsewhere, too",
    "tied": "is read elsewhere, too",
}


@pytest.mark.parametrize("how", KEEPS)
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_keeps(how: str, kind: str, tmp_path: Path) -> None:
    program = program_of(OneHead(how), kind, tmp_path)
    new, record = applied(program)
    assert new is program
    assert KEEPS[how] in " ".join(m.reason or "" for m in record.matches)


@pytest.mark.parametrize(("out", "fires"), [(26, True), (27, False)])
def test_pays_by_the_number_of_multiplications(out: int, fires: bool, tmp_path: Path) -> None:
    """A head of 8 takes 5 · 9 · 8 + 7 · 5 · 8 + 7 · 8 · out, or 5 · 9 · out + 7 · 5 · out."""
    assert (640 + 56 * out > 80 * out) is fires
    program = program_of(OneHead(features=8, out=out), "fx", tmp_path)
    _, record = applied(program)
    assert bool(record.committed) == fires
    assert fires or "it would take" in (record.matches[0].reason or "")


def test_several_heads_are_not_looked_at(tmp_path: Path) -> None:
    program = program_of(OneHead(heads=3), "fx", tmp_path)
    new, record = applied(program)
    assert new is program and not record.matches
