"""Maps that one softmax weighs one by one: branches that no stack holds, and what only reads like them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rewriter.blocks import blocks
from rewriter.program.program import Program
from tests.blocks.graphs import exported, traced

SHAPE = (2, 6, 5, 7)


class Branched(nn.Module):
    """Convolutions of one map, and scores of as many branches from their mean."""

    def __init__(
        self, join: Callable[[list[Tensor], Tensor], Tensor], maps: int = 2, scores: int = 2
    ) -> None:
        super().__init__()
        self.join, self.count = join, scores
        self.maps = nn.ModuleList(nn.Conv2d(6, 6, 2 * k + 1, padding=k) for k in range(maps))
        self.scores = nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 6 * scores))

    def forward(self, x: Tensor) -> Tensor:
        maps = [branch(x) for branch in self.maps]
        pooled = torch.stack(maps).sum(0).mean((2, 3))
        return self.join(maps, self.scores(pooled).view(-1, self.count, 6))


class Split(nn.Module):
    """Parts of one map."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.scores = nn.Conv2d(6, 12, 3, padding=1, groups=2), nn.Conv2d(6, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.map(x).relu().split(6, 1)
        scores = self.scores(sum(parts).mean((2, 3), keepdim=True)).view(-1, 1, 2, 6)
        weights = scores.transpose(1, 2).softmax(1).reshape(-1, 12, 1, 1).split(6, 1)
        joined: Tensor = sum(w * part for w, part in zip(weights, parts, strict=True))
        return joined


def weighed(maps: list[Tensor], weights: Tensor) -> Tensor:
    total = maps[0] * weights[:, 0, :, None, None]
    for k in range(1, len(maps)):
        total = total + weights[:, k, :, None, None] * maps[k]
    return total


def one_after_the_other(maps: list[Tensor], scores: Tensor) -> Tensor:
    return weighed(maps, scores.softmax(1))


def turned(maps: list[Tensor], scores: Tensor) -> Tensor:
    return weighed(maps[::-1], scores.transpose(1, 2).softmax(-1).transpose(1, 2))


def sigmoids(maps: list[Tensor], scores: Tensor) -> Tensor:
    return weighed(maps, scores.sigmoid())


def over_channels(maps: list[Tensor], scores: Tensor) -> Tensor:
    return weighed(maps, scores.softmax(2))


def the_first_twice(maps: list[Tensor], scores: Tensor) -> Tensor:
    return weighed(maps, scores.softmax(1)[:, :1].repeat(1, 2, 1))


def and_more(maps: list[Tensor], scores: Tensor) -> Tensor:
    return weighed(maps, scores.softmax(1)) + maps[0]


FIRES: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "two": (lambda: Branched(one_after_the_other), "selective kernels"),
    "three": (lambda: Branched(one_after_the_other, 3, 3), "selective kernels"),
    "in another order": (lambda: Branched(turned), "selective kernels"),
    "parts of one map": (Split, "split attention"),
}

KEEPS: dict[str, Callable[[], nn.Module]] = {
    "weights that are no shares": lambda: Branched(sigmoids),
    "shares of channels": lambda: Branched(over_channels),
    "one share twice": lambda: Branched(the_first_twice),
    "shares that are left over": lambda: Branched(one_after_the_other, 2, 3),
}


def program(build: Callable[[], nn.Module], kind: str, tmp_path: Path) -> Program:
    torch.manual_seed(0)
    module, x = build().eval(), (torch.randn(SHAPE),)
    return traced(module, x) if kind == "fx" else exported(module, x, tmp_path)


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize("name", FIRES)
def test_fires(name: str, kind: str, tmp_path: Path) -> None:
    build, mechanism = FIRES[name]
    found, _ = blocks(program(build, kind, tmp_path))
    (block,) = found
    assert (block.kind, block.mechanism, block.axes) == ("branch-softmax", mechanism, (0, 1))
    assert block.traits == ("pooled by mean",)


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize("name", KEEPS)
def test_keeps(name: str, kind: str, tmp_path: Path) -> None:
    found, _ = blocks(program(KEEPS[name], kind, tmp_path))
    assert not any(block.kind == "branch-softmax" for block in found)


def test_what_is_added_to_branches_is_no_branch() -> None:
    (block,) = blocks(traced(Branched(and_more).eval(), (torch.randn(SHAPE),)))[0]
    assert block.kind == "branch-softmax"
