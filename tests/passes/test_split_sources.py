"""Products with joined sources: which become sums of products, in both graphs, and which are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import rewriter
from rewriter.passes import SplitSources
from rewriter.program.program import Program
from rewriter.rules import fuse
from tests.blocks.graphs import exported, traced


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def joined_columns(program: Program) -> list[int]:
    """How long the joined axes are that are left."""
    nodes = [
        n
        for n in program.graph.nodes
        if n.op.rpartition("::")[2].partition(".")[0].lower() in ("concat", "cat")
    ]
    return [max(map(int, program.graph.values[n.outputs[0]].shape or ())) for n in nodes]


def same(new: Program, old: Program, given: tuple[Tensor, ...]) -> None:
    got, want = (np.asarray(p.run(*given)[0]) for p in (new, old))
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=16 * np.finfo(np.float32).eps * np.abs(want).max())


class Tokens(nn.Module):
    """One vector beside every token."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(6 + 4, 5, bias=bias)

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        joined = torch.cat([x, g.unsqueeze(1).expand(-1, x.shape[1], -1)], -1)
        return torch.as_tensor(self.linear(joined))


class Map(nn.Module):
    """A pooled map beside the map itself, the pooled one first."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6 + 6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True).expand_as(x)
        return torch.as_tensor(self.conv(torch.cat([pooled, x], 1)))


class Several(nn.Module):
    """Two maps, a row, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6 + 3 + 6 + 4, 5, 1, bias=False)

    def forward(self, x: Tensor, y: Tensor, row: Tensor, g: Tensor) -> Tensor:
        b, _, h, w = x.shape
        every = [x, row.expand(b, 3, h, w), y, g[:, :, None, None].repeat(1, 1, h, w)]
        return torch.as_tensor(self.conv(torch.cat(every, 1)))


class Spread(nn.Module):
    """Nothing but vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(7, 5)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        joined = torch.cat([a[:, None].expand(-1, 3, -1), b[:, None].expand(-1, 3, -1)], -1)
        return torch.as_tensor(self.linear(joined)) + 1.0


FIRES: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
    "tokens": (Tokens(), (random(2, 9, 6), random(2, 4, seed=1))),
    "tokens without a bias": (Tokens(bias=False), (random(2, 9, 6), random(2, 4, seed=1))),
    "one batch": (Tokens(), (random(1, 9, 6), random(1, 4, seed=1))),
    "a map": (Map(), (random(2, 6, 7, 5),)),
    "several sources": (
        Several(),
        (random(2, 6, 7, 5), random(2, 6, 7, 5, seed=1), random(2, 3, 1, 5, seed=2), random(2, 4, seed=3)),
    ),
    "nothing but vectors": (Spread(), (random(2, 3), random(2, 4, seed=1))),
}


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize("name", FIRES)
def test_fires(name: str, kind: str, tmp_path: Path) -> None:
    module, given = FIRES[name]
    program = traced(module, given) if kind == "fx" else exported(module, given, tmp_path)
    fused, record = fuse(program, [SplitSources()])
    assert [m.reason for m in record.matches] == [None]
    if kind == "onnx":
        fused.save(tmp_path / "fused.onnx")
        onnx.checker.check_model(onnx.load(tmp_path / "fused.onnx"), full_check=True)
    same(fused, program, given)
    assert not fuse(fused, [SplitSources()])[1].matches
    if name != "several sources" and kind == "fx":
        assert joined_columns(fused) == []


def test_what_is_saved_is_told() -> None:
    module, given = FIRES["tokens"]
    (found,) = fuse(traced(module, given), [SplitSources()])[1].matches
    assert found.gain == "4 channels are multiplied once, and not at every place"


def test_maps_that_differ_everywhere_stay_joined() -> None:
    module, given = FIRES["several sources"]
    fused = SplitSources()(traced(module, given))
    assert joined_columns(fused) == [12]


def test_dynamic_lengths() -> None:
    shapes = {"x": {0: Dim("b"), 1: Dim("n")}, "g": {0: Dim("b")}}
    module, given = FIRES["tokens"]
    program = rewriter.trace(module.eval(), given, dynamic_shapes=shapes)
    fused, record = fuse(program, [SplitSources()])
    assert [m.reason for m in record.matches] == [None]
    for batch, length in ((2, 9), (3, 1), (1, 4)):
        same(fused, program, (random(batch, length, 6), random(batch, 4, seed=1)))


class Two(nn.Module):
    """Two maps, both different everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.as_tensor(self.conv(torch.cat([x, y], 1)))


class Wide(nn.Module):
    """A convolution that sees the border, where zeros are beside the vector."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.conv(torch.cat([x, x.mean((2, 3), keepdim=True).expand_as(x)], 1)))


class Places(nn.Module):
    """Joined along tokens, not channels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        return torch.as_tensor(self.linear(torch.cat([x, g.expand(2, 3, 6)], 1)))


KEEPS: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
    "two maps": (Two(), (random(2, 6, 7, 5), random(2, 6, 7, 5, seed=1))),
    "a wider convolution": (Wide(), (random(2, 6, 7, 5),)),
    "joined along tokens": (Places(), (random(2, 9, 6), random(1, 1, 6, seed=1))),
    "one token": (Tokens(), (random(2, 1, 6), random(2, 4, seed=1))),
}


@pytest.mark.parametrize("kind", ["fx", "onnx"])
@pytest.mark.parametrize("name", KEEPS)
def test_keeps(name: str, kind: str, tmp_path: Path) -> None:
    module, given = KEEPS[name]
    program = traced(module, given) if kind == "fx" else exported(module, given, tmp_path)
    fused, record = fuse(program, [SplitSources()])
    assert fused is program and not record.matches


class Shown(Tokens):
    """The joined values are an output, too."""

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        joined = torch.cat([x, g.unsqueeze(1).expand(-1, x.shape[1], -1)], -1)
        return torch.cat([self.linear(joined), joined], -1)


class Twice(Tokens):
    """One weight for two products."""

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        tiled = g.unsqueeze(1).expand(-1, x.shape[1], -1)
        product = self.linear(torch.cat([x, tiled], -1)) * self.linear(torch.cat([x.exp(), tiled], -1))
        return torch.as_tensor(product)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Shown(), "the joined values are read elsewhere, too"),
        (Twice(), "would be held twice"),
    ],
)
def test_refuses(module: nn.Module, reason: str) -> None:
    program = traced(module, FIRES["tokens"][1])
    fused, record = fuse(program, [SplitSources()])
    assert fused is program and reason in (record.matches[0].reason or "")
