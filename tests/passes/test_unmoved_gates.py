"""Gates without turned or expanded copies: which are rewritten, in which graph, and which are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import rewriter
from rewriter.passes import GlobalPool, UnmovedGates, parse_rules
from rewriter.program.program import Program
from rewriter.rules import fuse
from tests.blocks.graphs import CHANNELS, Computed, exported, maps, traced

Formula = Callable[[Tensor], Tensor]


def operators(program: Program) -> list[str]:
    return [node.op.rpartition("::")[2].partition(".")[0] for node in program.graph.nodes]


def same(new: Program, old: Program, given: Tensor) -> None:
    got, want = (np.asarray(p.run(given)[0]) for p in (new, old))
    np.testing.assert_allclose(got, want, rtol=0, atol=8 * np.finfo(np.float32).eps * np.abs(want).max())


def squeezed(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True).sigmoid()


EXPANDED: dict[str, Formula] = {
    "weights": lambda x: x * squeezed(x).expand_as(x),
    "weights first": lambda x: squeezed(x).expand_as(x) * x,
    "weights without axes": lambda x: x * x.mean((0, 1, 2)).sigmoid().expand_as(x),
    "context": lambda x: x + squeezed(x).expand(-1, -1, *x.shape[2:]),
    "weights of rows": lambda x: x * x.mean(3, keepdim=True).sigmoid().expand_as(x),
    "tiled": lambda x: x * squeezed(x).repeat(1, 1, *x.shape[2:]),
}


@pytest.mark.parametrize("size", [(7, 5), (1, 5)], ids=str)
@pytest.mark.parametrize("name", EXPANDED)
def test_expanded_operands_in_onnx(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    (given,) = maps(1, *size)
    program = exported(Computed(EXPANDED[name]), (given,), tmp_path)
    fused, record = fuse(program, [UnmovedGates()])
    assert [m.reason for m in record.matches] == [None]
    fused.save(tmp_path / "fused.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "fused.onnx"), full_check=True)
    loaded = rewriter.load(tmp_path / "fused.onnx")
    copies = {"Tile"} if name == "tiled" else {"Expand", "Tile"}  # a copy as small as the weights may stay
    assert copies.isdisjoint(operators(loaded))
    same(loaded, program, given)
    assert not fuse(loaded, [UnmovedGates()])[1].matches


@pytest.mark.parametrize("name", sorted(EXPANDED.keys() - {"tiled"}))  # which is a copy, and no view
def test_views_of_pytorch_cost_nothing(name: str) -> None:
    program = traced(Computed(EXPANDED[name]), maps(1))
    assert fuse(program, [UnmovedGates()])[0] is program


class Turned(nn.Module):
    """Triplet attention as it was published: contiguous copies, and maxima with their places."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        convs = [nn.Conv2d(2, 1, 7, padding=3, bias=False) for _ in range(3)]
        for conv in convs:
            nn.init.normal_(conv.weight, std=0.2, generator=generator)
        self.convs = nn.ModuleList(convs)

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(())
        for conv, order in zip(self.convs, ((0, 2, 1, 3), (0, 3, 2, 1), (0, 1, 2, 3)), strict=True):
            turned = x.permute(order).contiguous()
            pooled = torch.cat([turned.max(1)[0].unsqueeze(1), turned.mean(1).unsqueeze(1)], 1)
            total = total + (turned * conv(pooled).sigmoid()).permute(order).contiguous()
        return total / 3


@pytest.mark.parametrize("size", [(7, 5), (5, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_triplet_attention_has_no_copies(kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    (given,) = maps(1, *size)
    program = traced(Turned(), (given,)) if kind == "fx" else exported(Turned(), (given,), tmp_path)
    fused, record = fuse(program, [GlobalPool(), UnmovedGates()])
    assert all(m.committed for m in record.matches), [m.reason for m in record.matches]
    same(fused, program, given)
    if size == (1, 1):
        return  # nothing is turned
    shape = (2, CHANNELS, *size)
    moved = {"permute", "clone", "Transpose"}
    large = [
        node.op
        for node in fused.graph.nodes
        if operators_of(node.op) in moved
        and sorted(map(int, fused.graph.values[node.outputs[0]].shape or ())) == sorted(shape)
        and fused.graph.readers(node.outputs[0])
    ]
    assert "max" not in operators(fused)
    assert not [op for op in large if "clone" in op or "Transpose" in op]


def operators_of(op: str) -> str:
    return op.rpartition("::")[2].partition(".")[0]


def turned_without_a_copy(x: Tensor) -> Tensor:
    return (x.transpose(1, 2) * x.mean((1, 2)).sigmoid()[:, None, None]).transpose(1, 2)


def test_turned_views_of_pytorch_are_kept() -> None:
    program = traced(Computed(turned_without_a_copy), maps(1))
    assert fuse(program, [UnmovedGates()])[0] is program


def test_turned_views_of_onnx_are_copies(tmp_path: Path) -> None:
    program = exported(Computed(turned_without_a_copy), maps(1), tmp_path)
    fused, record = fuse(program, [UnmovedGates()])
    assert len(record.committed) == 1 and "Transpose" not in operators(fused)
    same(fused, program, maps(1)[0])


KEEPS: dict[str, Formula] = {
    "an activation": lambda x: x * x.sigmoid(),
    "a plain gate": lambda x: x * squeezed(x),
    "turned for good": lambda x: (x * squeezed(x)).permute(0, 2, 3, 1).contiguous(),
    "both expanded": lambda x: x.mean(2, keepdim=True).expand_as(x) * squeezed(x),
    "a product of matrices": lambda x: squeezed(x).expand_as(x) @ x.transpose(2, 3),
    "another function": lambda x: torch.maximum(x, squeezed(x).expand_as(x)),
}


@pytest.mark.parametrize("name", KEEPS)
def test_keeps(name: str, tmp_path: Path) -> None:
    for program in (
        traced(Computed(KEEPS[name]), maps(1)),
        exported(Computed(KEEPS[name]), maps(1), tmp_path),
    ):
        fused, record = fuse(program, [UnmovedGates()])
        assert fused is program and not record.matches


@pytest.mark.parametrize("kind", ["fx", "onnx"])
def test_what_is_read_elsewhere_stays(kind: str, tmp_path: Path) -> None:
    def shown(x: Tensor) -> Tensor:
        gated = x.transpose(1, 2).contiguous() * x.mean((1, 2)).sigmoid()[:, None, None]
        return torch.cat([gated.transpose(1, 2).contiguous().flatten(), gated.flatten()])

    program = (
        traced(Computed(shown), maps(1)) if kind == "fx" else exported(Computed(shown), maps(1), tmp_path)
    )
    fused, record = fuse(program, [UnmovedGates()])
    assert fused is program
    assert [m.reason for m in record.matches] == ["what is turned back is read elsewhere, too"]


def test_exact_has_both_rules() -> None:
    names = [rule.name for rule in parse_rules("exact") or ()]
    assert names.index("global-pool") < names.index("unmoved-gates")
