"""Keys that a known mask hides from every query: gathered away, or kept with a reason."""

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
from rewriter.passes import UnreadQueries, UnseenKeys
from rewriter.program.program import Program
from rewriter.rules import Fusion, fuse

HEADS, TOKENS, FEATURES = 3, 9, 8
WIDTH = HEADS * FEATURES
SCATTERED, RANGE = [0, 2, 3, 7], [2, 3, 4, 5]


def mask_of(seen: list[int], rows: str = "all") -> Tensor:
    """Return which keys queries see; ``some``: one query fewer keys; ``none``: one query none at all."""
    found = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    found[:, seen] = True
    if rows == "some":
        found[4, seen[1]] = False
    if rows == "none":
        found[4] = False
    return found


class Padded(nn.Module):
    """Self-attention under a fixed mask."""

    seen: Tensor

    def __init__(self, seen: Tensor, how: str = "boolean") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.register_buffer("seen", seen)

    def forward(self, x: Tensor) -> Any:
        q, k, v = (
            f(x).reshape(x.shape[0], -1, HEADS, FEATURES).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        seen = self.seen & (x.mean() < 9) if self.how == "by the input" else self.seen
        if self.how == "boolean":
            return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        scores = q @ k.transpose(-1, -2) / math.sqrt(FEATURES)
        if self.how == "replaced":
            scores = scores.masked_fill(~seen, torch.finfo(torch.float32).min)
        else:
            scores = scores + torch.where(seen, 0.0, -math.inf)
        weights = scores.softmax(-1)
        return (weights @ v, weights) if self.how == "weights" else weights @ v


def tokens() -> Tensor:
    return torch.randn(2, TOKENS, WIDTH, generator=torch.Generator().manual_seed(1))


def program_of(module: nn.Module, kind: str, folder: Path) -> Program:
    if kind == "fx":
        return rewriter.trace(module.eval(), (tokens(),))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module.eval(), (tokens(),), str(folder / "m.onnx"), dynamo=False, opset_version=17)
    return rewriter.load(folder / "m.onnx")


def applied(program: Program) -> tuple[Program, Fusion]:
    return fuse(program, [UnseenKeys()])


def same(new: Program, old: Program, x: Tensor) -> None:
    for a, b in zip(new.run(x), old.run(x), strict=True):
        torch.testing.assert_close(
            torch.as_tensor(a), torch.as_tensor(b), rtol=1e-4, atol=1e-5, equal_nan=True
        )


@pytest.mark.parametrize("how", ["boolean", "added", "replaced"])
@pytest.mark.parametrize("seen", [SCATTERED, RANGE, [5]], ids=["scattered", "range", "one"])
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_fires(how: str, seen: list[int], kind: str, tmp_path: Path) -> None:
    program = program_of(Padded(mask_of(seen), how), kind, tmp_path)
    new, record = applied(program)
    (found,) = record.committed
    assert found.gain == f"{len(seen)} of 9 keys, no mask"
    (site,) = new.sites
    assert site.keys.known() == len(seen) and site.facts.dense
    same(new, program, tokens())
    again, record = applied(new)
    assert again is new and not record.matches


@pytest.mark.parametrize("how", ["boolean", "added"])
@pytest.mark.parametrize("rows", ["some", "none"])
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_what_is_left_of_the_mask_stays(how: str, rows: str, kind: str, tmp_path: Path) -> None:
    """A query that sees no key gives what it gave: zero, or NaN."""
    program = program_of(Padded(mask_of(SCATTERED, rows), how), kind, tmp_path)
    new, record = applied(program)
    (found,) = record.committed
    assert found.gain == "4 of 9 keys"
    same(new, program, tokens())


def test_causal_and_padded(tmp_path: Path) -> None:
    seen = mask_of(RANGE) & torch.ones(TOKENS, TOKENS).tril().bool()
    seen[:2, 2] = True
    program = program_of(Padded(seen), "fx", tmp_path)
    new, record = applied(program)
    assert [m.gain for m in record.committed] == ["4 of 9 keys"]
    same(new, program, tokens())


def test_projections_follow(tmp_path: Path) -> None:
    """Of keys in one range, only these are projected then."""
    program = program_of(Padded(mask_of(RANGE)), "fx", tmp_path)
    new, record = fuse(program, [UnseenKeys(), UnreadQueries()])
    assert {m.rule for m in record.committed} == {"unseen-keys", "unread-queries"}
    same(new, program, tokens())


KEEPS: dict[str, tuple[Tensor, str, str]] = {
    "by the input": (mask_of(RANGE), "by the input", ""),
    "all seen": (mask_of([*range(TOKENS)]), "boolean", ""),
    "weights that are read": (mask_of(RANGE), "weights", "are read elsewhere, too"),
    "nothing left": (mask_of([]), "boolean", "no query sees any key"),
    "a number, and a query without keys": (mask_of(RANGE, "none"), "replaced", ""),
}


@pytest.mark.parametrize("name", KEEPS)
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_keeps(name: str, kind: str, tmp_path: Path) -> None:
    seen, how, reason = KEEPS[name]
    program = program_of(Padded(seen, how), kind, tmp_path)
    new, record = applied(program)
    assert new is program
    assert reason in " ".join(m.reason or "" for m in record.matches) and bool(reason) == bool(record.matches)


def test_keeps_a_copy_that_is_larger_than_what_it_saves() -> None:
    class One(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=(torch.arange(TOKENS) != 3)[None])

    given = (torch.randn(1, 2, 1, 4), torch.randn(1, 2, TOKENS, 4), torch.randn(1, 2, TOKENS, 4))
    program = rewriter.trace(One(), given)
    new, record = applied(program)
    assert new is program
    assert "8 keys would be copied to leave out 1 for 1 queries" in (record.matches[0].reason or "")
