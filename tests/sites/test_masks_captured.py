"""Facts of masks as models spell them: from the FX graph and from ONNX, static and dynamic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import rewriter

B, H, L, D = 2, 2, 12, 8
INFINITY = float("inf")

Visible = Callable[[int, Tensor, Tensor], Tensor]


def positions(n: int) -> tuple[Tensor, Tensor]:
    at = torch.arange(n)
    return at[:, None], at[None, :]


def causal(n: int) -> Tensor:
    i, j = positions(n)
    return j <= i


def chunked(n: int, ids: Tensor, shown: Tensor) -> Tensor:
    i, j = positions(n)
    return (j <= i) & (i // 4 == j // 4)


def on_grid(n: int, ids: Tensor, shown: Tensor) -> Tensor:
    i, j = positions(n)
    return ((i // 4 - j // 4).abs() <= 1) & ((i % 4 - j % 4).abs() <= 1)


def nearest(n: int, ids: Tensor, shown: Tensor) -> Tensor:
    i, j = positions(n)
    return (j - i.clamp(2, n - 3)).abs() <= 2


def packed(n: int, ids: Tensor, shown: Tensor) -> Tensor:
    """Sequences packed into one: ids start again at 0 with each."""
    sequence = (ids == 0).cumsum(1)
    return causal(n) & (sequence[:, None, :, None] == sequence[:, None, None, :])


def lengths(n: int, ids: Tensor, shown: Tensor) -> Tensor:
    return (torch.arange(n) < shown.sum(1, keepdim=True))[:, None, None, :]


MASKS: dict[str, tuple[Visible, str]] = {
    "causal": (lambda n, ids, shown: causal(n), "causal"),
    "tril": (lambda n, ids, shown: torch.ones(n, n, dtype=torch.bool).tril(), "causal"),
    "triu": (lambda n, ids, shown: ~torch.ones(n, n, dtype=torch.bool).triu(1), "causal"),
    "window": (lambda n, ids, shown: causal(n) & causal(n).triu(-3), "window"),
    "chunks": (chunked, "causal+block-diagonal"),
    "grid": (on_grid, "neighbourhood"),
    "neighbourhood": (nearest, "neighbourhood"),
    "document": (lambda n, ids, shown: ids[:, None, :, None] == ids[:, None, None, :], "document"),
    "packed": (packed, "causal+document"),
    "keys": (lambda n, ids, shown: (shown > 0)[:, None, None, :], "padding"),
    "causal, keys": (lambda n, ids, shown: causal(n) & (shown > 0)[:, None, None, :], "causal+padding"),
    "keys, queries": (
        lambda n, ids, shown: (shown > 0)[:, None, None, :] & (shown > 0)[:, None, :, None],
        "padding+query-padding",
    ),
    "lengths": (lengths, "padding"),
    "prefix": (lambda n, ids, shown: causal(n) | (torch.arange(n) < 3), "prefix"),
}


class Model(torch.nn.Module):
    def __init__(self, visible: Visible) -> None:
        super().__init__()
        self.visible = visible

    def forward(self, q: Tensor, k: Tensor, v: Tensor, ids: Tensor, shown: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) * D**-0.5
        seen = self.visible(q.shape[2], ids, shown)
        scores = scores.masked_fill(~seen, -INFINITY)
        result: Tensor = scores.softmax(-1) @ v
        return result


def inputs() -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, H, L, D, generator=g) for _ in range(3))
    return q, k, v, torch.arange(L).remainder(5).repeat(B, 1), torch.ones(B, L, dtype=torch.int64)


def dynamic() -> dict[str, dict[int, torch.export.Dim]]:
    length = torch.export.Dim("length", min=8, max=64)
    return {"q": {2: length}, "k": {2: length}, "v": {2: length}, "ids": {1: length}, "shown": {1: length}}


@pytest.mark.parametrize("lengths_", ["static", "dynamic"])
@pytest.mark.parametrize("name", MASKS)
def test_from_fx(name: str, lengths_: str) -> None:
    visible, word = MASKS[name]
    shapes = dynamic() if lengths_ == "dynamic" else None
    program = rewriter.trace(Model(visible), inputs(), dynamic_shapes=shapes)
    assert [s.facts.mask for s in program.sites] == [word], program.refused


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MASKS)
def test_from_onnx(name: str, tmp_path: Path) -> None:
    visible, word = MASKS[name]
    names = ["q", "k", "v", "ids", "shown"]
    exported = torch.onnx.export(
        Model(visible), inputs(), dynamo=True, dynamic_shapes=dynamic(), input_names=names, verbose=False
    )
    assert exported is not None
    exported.save(str(tmp_path / "model.onnx"))
    program = rewriter.load(tmp_path / "model.onnx")
    assert [s.facts.mask for s in program.sites] == [word], program.refused
