"""Few queries read the source of keys and values: where, and where these stay projected."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rewriter
from rewriter.passes import UnreadQueries, WeightAbsorption, weight_absorption
from rewriter.program.program import Program
from rewriter.rules import Fusion, fuse
from rewriter.rules.projections import projection_of
from tests.passes.test_unread_queries import (
    TOKENS,
    Model,
    Read,
    close,
    exported,
    first,
    last,
    middle,
    tokens,
    traced,
    two,
)

SOURCE, HEADS, FEATURES = 24, 3, 8


def absorbed(program: Program) -> tuple[Program, Fusion]:
    return fuse(program, [WeightAbsorption()])


def projections(program: Program, rows: int = TOKENS) -> int:
    """Return how many projections of whole sequences a program computes."""
    found = (projection_of(prim) for prim in program.prims().values())
    return sum(one is not None and len(one.shape) == 3 and one.shape[1].known() == rows for one in found)


LAST_BLOCK = [
    *((first, spelling) for spelling in ("plain", "fused", "eager", "post-norm", "one key head")),
    *((last, spelling) for spelling in ("causal", "fused")),
    (middle, "biased"),
    (two, "fused"),
]


@pytest.mark.parametrize(("read", "spelling"), LAST_BLOCK, ids=[f"{r.__name__}, {s}" for r, s in LAST_BLOCK])
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_last_block(read: Read, spelling: str, kind: str, tmp_path: Path) -> None:
    model = Model(read, spelling)
    program = traced(model) if kind == "fx" else exported(model, tmp_path)
    narrow, _ = fuse(program, [UnreadQueries()])
    new, record = absorbed(narrow)
    (found,) = record.committed
    assert (found.gain or "").startswith("keys and values are not projected: ")
    assert projections(narrow) - projections(new) == (1 if spelling == "fused" else 2)
    path = tmp_path / ("new.pt2" if kind == "fx" else "new.onnx")
    new.save(path)
    close(rewriter.load(path), program, tokens())


class Few(nn.Module):
    """Learned queries attend to a sequence; ``how`` says what is special."""

    def __init__(self, how: str = "plain", queries: int = 1) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.how = how
        keys = 1 if how == "one key head" else HEADS
        bias = how != "no bias"
        self.queries = nn.Parameter(torch.randn(1, HEADS, queries, FEATURES))
        self.k = nn.Linear(SOURCE, keys * FEATURES, bias=bias and how != "sink without a bias of keys")
        self.v = nn.Linear(SOURCE, keys * FEATURES, bias=bias)
        self.out = nn.Linear(HEADS * FEATURES, 5)

    def split(self, x: Tensor) -> Tensor:
        x = x.reshape(*x.shape[:2], -1, FEATURES).transpose(1, 2)
        return x.expand(-1, HEADS, -1, -1)

    def attend(self, x: Tensor) -> Any:
        k, v = self.split(self.k(x)), self.split(self.v(x))
        scores = self.queries @ k.transpose(-1, -2) / math.sqrt(FEATURES)
        if self.how == "softcap":
            scores = 5 * torch.tanh(scores / 5)
        if self.how == "additive mask":
            scores = scores + torch.where(x[..., 0] > 9, 0.0, -math.inf)[:, None, None]
        if "sink" in self.how:
            sink = torch.ones_like(scores[..., :1])
            return torch.cat([scores, sink], -1).softmax(-1)[..., :-1] @ v
        if self.how == "zero for none":
            q = self.queries.expand(x.shape[0], -1, -1, -1)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=(x[..., 0] > 9)[:, None, None])
        if self.how == "rotated":
            turn = 0.1 * torch.arange(x.shape[1], dtype=x.dtype)[:, None]
            k = k * torch.cos(turn) + k.flip(-1) * torch.sin(turn)
            scores = self.queries @ k.transpose(-1, -2)
        weights = scores.softmax(-1)
        return (weights @ v, weights) if self.how == "weights" else weights @ v

    def forward(self, x: Tensor) -> Any:
        found = self.attend(x)
        found, *more = found if isinstance(found, tuple) else (found,)
        b, h, i, d = found.shape
        made = self.out(found.transpose(1, 2).reshape(b, i, h * d))
        if self.how == "cache":
            more = [self.k(x)]
        if self.how == "tied":
            more = [self.k(made @ torch.ones(5, SOURCE)), self.v(made @ torch.ones(5, SOURCE))]
        return (made, *more)


def source(batch: int = 2, n: int = 9) -> Tensor:
    x = torch.randn(batch, n, SOURCE, generator=torch.Generator().manual_seed(n))
    x[:1, : n // 2, 0] += 20  # the second element of a batch has no visible key
    return x


def program_of(module: nn.Module, kind: str, folder: Path, dynamic: bool = False) -> Program:
    x = source()
    if kind == "fx":
        dims = ({0: torch.export.Dim("b", min=1, max=64), 1: torch.export.Dim("n", min=1, max=64)},)
        return rewriter.trace(module.eval(), (x,), dynamic_shapes=dims if dynamic else None)
    axes = {"x": {0: "b", 1: "n"}} if dynamic else None
    options: dict[str, Any] = {"dynamo": False, "opset_version": 17, "input_names": ["x"]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (x,), str(folder / "m.onnx"), dynamic_axes=axes, **options)
    return rewriter.load(folder / "m.onnx")


def same(new: Program, old: Program, x: Tensor) -> None:
    for a, b in zip(new.run(x), old.run(x), strict=True):
        torch.testing.assert_close(
            torch.as_tensor(a), torch.as_tensor(b), rtol=1e-4, atol=1e-5, equal_nan=True
        )


BOTH, VALUES = "keys and values are", "values are"
FIRES = {
    "plain": BOTH,
    "no bias": BOTH,
    "one key head": BOTH,
    "additive mask": BOTH,
    "rotated": VALUES,
    "softcap": VALUES,
    "sink": VALUES,
    "sink without a bias of keys": BOTH,
    "zero for none": BOTH,
    "cache": VALUES,
}


@pytest.mark.parametrize("how", FIRES)
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_fires(how: str, kind: str, tmp_path: Path) -> None:
    program = program_of(Few(how), kind, tmp_path)
    new, record = absorbed(program)
    (found,) = record.committed
    assert (found.gain or "").startswith(f"{FIRES[how]} not projected: ")
    assert projections(program, 9) - projections(new, 9) == (2 if FIRES[how] == BOTH else 1)
    same(new, program, source())
    again, record = absorbed(new)
    assert again is new and not record.committed


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_dynamic_batch_and_keys(kind: str, tmp_path: Path) -> None:
    program = program_of(Few(queries=2), kind, tmp_path, dynamic=True)
    new, record = absorbed(program)
    assert len(record.committed) == 1
    for batch, n in ((2, 9), (3, 5), (1, 1)):
        same(new, program, source(batch, n))


def test_half_precision(tmp_path: Path) -> None:
    model = Few().to(torch.bfloat16)
    program = rewriter.trace(model.eval(), (source().to(torch.bfloat16),))
    new, record = absorbed(program)
    assert len(record.committed) == 1
    assert {v.dtype for v in new.graph.values.values()} == {"bfloat16"}


REASONS = {
    "softcap": "the bias of the keys moves scores behind a soft cap, or beside a sink",
    "sink": "the bias of the keys moves scores behind a soft cap, or beside a sink",
    "cache": "is read elsewhere, too",
    "tied": "its weight is read elsewhere, too, and would be held twice",
    "weights": "its scores or weights are read elsewhere, too",
}


@pytest.mark.parametrize("how", REASONS)
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_keeps(how: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where values alone are absorbed, nothing is said of the keys; ask for both and there is a reason."""
    monkeypatch.setattr(weight_absorption, "_choices", lambda whole: [whole] if whole.k and whole.v else [])
    program = program_of(Few(how), kind, tmp_path)
    new, record = absorbed(program)
    assert new is program
    assert any(REASONS[how] in (m.reason or "") for m in record.matches)


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_keeps_many_queries(kind: str, tmp_path: Path) -> None:
    """As many queries as a head has features are no longer few."""
    program = program_of(Few(queries=20), kind, tmp_path)
    new, record = absorbed(program)
    assert new is program
    (found,) = record.matches
    assert "multiplications more for 20 queries" in (found.reason or "")


def test_keeps_a_number_of_queries_that_is_not_known() -> None:
    model = Model(first)
    program = traced(model, dynamic=True)
    new, record = absorbed(program)
    assert new is program
    assert all("there may be many queries" in (m.reason or "") for m in record.matches)


class Packed(nn.Module):
    """Cross-attention whose projections are one matrix, cut apart by the graph; it may be called twice."""

    def __init__(self, weights: bool = False, twice: bool = False) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.weights, self.twice = weights, twice
        self.attend = nn.MultiheadAttention(SOURCE, HEADS, batch_first=True)
        nn.init.normal_(self.attend.in_proj_bias, std=0.1)

    def forward(self, q: Tensor, x: Tensor) -> Any:
        made, _ = self.attend(q, x, x, need_weights=self.weights)
        return (made, self.attend(q, x + 1, x + 1, need_weights=False)[0]) if self.twice else made


@pytest.mark.parametrize("weights", [False, True])
def test_packed_projections(weights: bool) -> None:
    given = (source(2, 1), source())
    program = rewriter.trace(Packed(weights).eval(), given)
    new, record = absorbed(program)
    (found,) = record.committed
    assert (found.gain or "").startswith(f"{BOTH} not projected: ")
    assert not new.graph.readers("p_attend_in_proj_weight"), "what is left of it stands alone"
    for a, b in zip(new.run(*given), program.run(*given), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_keeps_packed_projections_that_are_used_twice() -> None:
    given = (source(2, 1), source())
    program = rewriter.trace(Packed(twice=True).eval(), given)
    new, record = absorbed(program)
    assert new is program and len(record.matches) == 2
    assert all("read elsewhere, too" in (m.reason or "") for m in record.matches)


@pytest.mark.parametrize("read", ["whole", "elsewhere"])
def test_keeps_packed_projections_that_something_else_reads(read: str) -> None:
    """The whole matrix, or other rows of it that reach into those of the keys."""

    class Reading(Packed):
        def forward(self, q: Tensor, x: Tensor) -> Any:
            weight = self.attend.in_proj_weight
            more = weight.sum() if read == "whole" else x @ weight[SOURCE - 1 : 2 * SOURCE + 1].T
            return super().forward(q, x), more

    program = rewriter.trace(Reading().eval(), (source(2, 1), source()))
    new, record = absorbed(program)
    assert new is program
    assert "its weight is read elsewhere, too" in (record.matches[0].reason or "")


class OneHead(nn.Module):
    """Cross-attention with one head of ``features``, between sources of these widths."""

    def __init__(self, asked: int, features: int, given: int, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.q = nn.Linear(asked, features, bias=bias)
        self.k, self.v = (nn.Linear(given, features, bias=bias) for _ in range(2))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.q(x), self.k(y), self.v(y))


ONE_MATRIX = "queries by one matrix for both"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dynamic", [True, False])
def test_one_matrix_for_queries_and_keys_of_one_head(bias: bool, dynamic: bool) -> None:
    """However many queries there are; the values stay where there may be many more of them than of keys."""
    x, y = torch.randn(2, 41, SOURCE), torch.randn(2, 40, SOURCE)
    dims = ({1: torch.export.Dim("n", min=2, max=512)}, {1: torch.export.Dim("m", min=2, max=512)})
    program = rewriter.trace(
        OneHead(24, 24, 24, bias).eval(), (x, y), dynamic_shapes=dims if dynamic else None
    )
    new, record = absorbed(program)
    (found,) = record.committed
    what = "keys" if dynamic else "keys and values"
    assert (found.gain or "").startswith(f"{what} are not projected, {ONE_MATRIX}")
    for a, b in zip(new.run(x, y), program.run(x, y), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    again, record = absorbed(new)
    assert again is new and not record.committed


@pytest.mark.parametrize(("features", "fires"), [(12, False), (13, True)])
def test_one_matrix_only_where_it_is_smaller(features: int, fires: bool) -> None:
    """24 · 24 multiplications per query, or 12 · (24 + 24), and more for the scores; 13 is the first gain."""
    x, y = torch.randn(1, 2, SOURCE), torch.randn(1, 300, SOURCE)
    program = rewriter.trace(OneHead(24, features, 24).eval(), (x, y))
    new, record = absorbed(program)
    assert len(record.committed) == 1, "two queries are few"
    assert (ONE_MATRIX in (record.committed[0].gain or "")) == fires
    for a, b in zip(new.run(x, y), program.run(x, y), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
