"""Projections of one source in one product: where, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rewriter
from rewriter.passes import SharedProjections, parse_rules
from rewriter.program.program import Program
from rewriter.rules import fuse
from tests.passes.test_unread_queries import WIDTH, Model, close, exported, first, tokens, traced

JOINED = [("plain", 3, 3 * WIDTH), ("one key head", 3, WIDTH + 2 * WIDTH // 3), ("causal", 3, 3 * WIDTH)]


def program_of(spelling: str, kind: str, folder: Path, dynamic: bool = False) -> Program:
    model = Model(first, spelling)
    return traced(model, dynamic) if kind == "fx" else exported(model, folder, dynamic)


@pytest.mark.parametrize(("spelling", "count", "width"), JOINED)
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_fires(spelling: str, count: int, width: int, kind: str, tmp_path: Path) -> None:
    program = program_of(spelling, kind, tmp_path)
    new, record = fuse(program, [SharedProjections()])
    assert [m.gain for m in record.matches] == [f"1 product for {count}, {width} columns"] * 2
    close(new, program, tokens())
    path = tmp_path / ("new.pt2" if kind == "fx" else "new.onnx")
    new.save(path)
    close(rewriter.load(path), program, tokens())


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_dynamic_lengths(kind: str, tmp_path: Path) -> None:
    program = program_of("plain", kind, tmp_path, True)
    new, record = fuse(program, [SharedProjections()])
    assert len(record.committed) == 2
    close(new, program, tokens(3, 2))


class Cross(nn.Module):
    """Keys and values are projected from another sequence than the queries."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.q, self.k, self.v = (nn.Linear(WIDTH, 8, bias=b) for b in (True, False, False))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.q(x), self.k(y), self.v(y))


def test_keys_and_values_of_cross_attention() -> None:
    program = rewriter.trace(Cross().eval(), (tokens(), tokens(2, 5)))
    new, record = fuse(program, [SharedProjections()])
    assert [m.gain for m in record.matches] == ["1 product for 2, 16 columns"]
    for a, b in zip(new.run(tokens(), tokens(2, 5)), program.run(tokens(), tokens(2, 5)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


class Tied(Cross):
    """One weight for keys and values; a weight that is an input; a projection along another axis."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        tied = F.scaled_dot_product_attention(self.q(x), self.k(y), self.k(y) + 1)
        return tied + (x @ y.mean(0).T[:, :8] + x @ y.sum(0).T[:, :8]).sum()


def test_keeps() -> None:
    program = rewriter.trace(Tied().eval(), (tokens(), tokens(2, WIDTH)))
    new, record = fuse(program, [SharedProjections()])
    assert new is program
    assert all("held twice" in (m.reason or "") for m in record.matches)


def test_exact_leaves_it_out_and_says_what_it_would_do() -> None:
    program = traced(Model(first))
    (rule,) = [r for r in parse_rules("exact") or () if r.name == "shared-projections"]
    new, record = fuse(program, [rule])
    assert new is program
    reasons = {m.reason or "" for m in record.matches}
    assert (
        len(reasons) == 1 and "1 product for 3, 36 columns: it is measured to be no faster" in reasons.pop()
    )


class Parallel(nn.Module):
    """Self-attention and cross-attention of the same tokens, side by side; packed weights or one each."""

    def __init__(self, packed: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.own, self.other = (nn.MultiheadAttention(WIDTH, 2, batch_first=True) for _ in range(2))
        self.q, self.k, self.v, self.asked, self.keys, self.values = (nn.Linear(WIDTH, 8) for _ in range(6))
        self.packed = packed

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.packed:
            found = [f(x, z, z, need_weights=False)[0] for f, z in ((self.own, x), (self.other, y))]
        else:
            pairs = ((self.q, self.k, self.v, x), (self.asked, self.keys, self.values, y))
            found = [F.scaled_dot_product_attention(q(x), k(z), v(z)) for q, k, v, z in pairs]
        return found[0] + found[1]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("packed", "gains"),
    [
        (False, ["1 product for 4, 32 columns", "1 product for 2, 16 columns"]),
        (True, [f"1 product for 2, {4 * WIDTH} columns"]),
    ],
)
def test_parallel_self_and_cross_attention(packed: bool, gains: list[str]) -> None:
    given = (tokens(), tokens(2, 5))
    program = rewriter.trace(Parallel(packed).eval(), given)
    new, record = fuse(program, [SharedProjections()])
    assert [m.gain for m in record.committed] == gains
    assert not new.graph.readers("p_other_in_proj_weight") if packed else True
    for a, b in zip(new.run(*given), program.run(*given), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
