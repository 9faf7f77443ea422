"""Means and maxima over whole axes: which are computed another way, in which graph, and which are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import Dim

import rewriter
from rewriter.algebra.sizes import ONE, Size
from rewriter.passes import GlobalPool
from rewriter.program.onnx import OnnxProgram
from rewriter.program.program import Program
from rewriter.rules import fuse
from rewriter.rules.pools import pool_of, slow_rows, unturned
from tests.blocks.graphs import Computed, exported, traced

ROWS = 64
IMAGE = (1, ROWS, 7, 5)

Formula = Callable[[Tensor], Tensor]


def image(*shape: int) -> Tensor:
    return torch.randn(shape or IMAGE, generator=torch.Generator().manual_seed(0))


def operators(program: Program) -> list[str]:
    names = (node.op.rpartition("::")[2].partition(".")[0] for node in program.graph.nodes)
    return [name for name in names if name.lower() not in ("reshape", "getitem")]


def same(new: Program, old: Program, given: Tensor) -> None:
    got, want = (np.asarray(p.run(given)[0]) for p in (new, old))
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=8 * np.finfo(np.float32).eps * np.abs(want).max())


IN_FX: dict[str, tuple[Formula, list[str]]] = {
    "maximum of channels": (lambda x: x.max(1)[0], ["amax"]),
    "maximum of channels, kept": (lambda x: x.max(1, keepdim=True).values, ["amax"]),
    "adaptive maximum": (lambda x: F.adaptive_max_pool2d(x, 1), ["amax"]),
    "windows as long as an axis": (lambda x: F.max_pool2d(x, (7, 1)), ["amax"]),
    "maximum of a copy with its axes turned": (
        lambda x: x.permute(0, 2, 1, 3).contiguous().amax(1),
        ["amax"],
    ),
    "mean of a copy with its axes turned": (
        lambda x: x.transpose(1, 3).contiguous().mean(2),
        ["mean", "permute"],
    ),
}


SIZES = [(7, 5), (1, 1), (7, 1)]


@pytest.mark.parametrize(
    ("name", "size"),
    [(name, size) for name in IN_FX for size in SIZES if "windows" not in name or size[0] == 7],
    ids=str,
)
def test_fires_in_fx(name: str, size: tuple[int, int]) -> None:
    formula, expected = IN_FX[name]
    given = image(2, ROWS, *size)
    program = traced(Computed(formula), (given,))
    fused, record = fuse(program, [GlobalPool()])
    assert all(m.committed for m in record.matches), [m.reason for m in record.matches]
    same(fused, program, given)
    if size == (7, 5):
        assert operators(fused) == expected and record.committed
        assert not fuse(fused, [GlobalPool()])[1].matches


IN_ONNX: dict[str, tuple[Formula, list[str]]] = {
    "mean of places": (lambda x: F.adaptive_avg_pool2d(x, 1), ["ReduceMean"]),
    "maximum of places": (lambda x: F.adaptive_max_pool2d(x, 1), ["ReduceMax"]),
    "mean of rows by windows": (lambda x: F.avg_pool2d(x, (1, 5)), ["ReduceMean"]),
    "mean of channels": (lambda x: x.mean(1, keepdim=True), ["MatMul"]),
    "mean of tokens": (lambda x: x.flatten(2).transpose(1, 2)[:, :32].exp().mean(1), ["MatMul"]),
    "maximum of channels": (lambda x: x.amax(1), ["ReduceMax", "ReduceMax"]),
    "maximum of channels, kept": (lambda x: x.max(1, keepdim=True).values, ["ReduceMax", "ReduceMax"]),
    "mean of channels with their axes turned": (lambda x: x.permute(0, 2, 3, 1).mean((1, 2)), ["ReduceMean"]),
}


@pytest.mark.parametrize("name", IN_ONNX)
def test_fires_in_onnx(name: str, tmp_path: Path) -> None:
    formula, expected = IN_ONNX[name]
    program = exported(Computed(formula), (image(),), tmp_path)
    fused, record = fuse(program, [GlobalPool()])
    assert [m.reason for m in record.matches] == [None]
    fused.save(tmp_path / "fused.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "fused.onnx"), full_check=True)
    loaded = rewriter.load(tmp_path / "fused.onnx")
    assert operators(loaded)[-len(expected) :] == expected
    same(loaded, program, image())
    assert not fuse(loaded, [GlobalPool()])[1].matches


FAST: dict[str, Formula] = {
    "mean of places": lambda x: x.mean((2, 3)),
    "maximum of places": lambda x: x.amax((2, 3)),
    "sum of channels": lambda x: x.sum(1),
    "windows": lambda x: F.avg_pool2d(x, 2),
    "few channels": lambda x: x[:, :16].mean(1),
    "smallest": lambda x: x.amin(1),
}


@pytest.mark.parametrize("name", FAST)
def test_keeps(name: str, tmp_path: Path) -> None:
    for program in (
        traced(Computed(FAST[name]), (image(),)),
        exported(Computed(FAST[name]), (image(),), tmp_path),
    ):
        fused, record = fuse(program, [GlobalPool()])
        assert fused is program and not record.matches


def test_pytorch_means_are_as_fast_by_any_name() -> None:
    program = traced(Computed(lambda x: F.adaptive_avg_pool2d(x, 1) + x.mean(1, keepdim=True)), (image(),))
    assert fuse(program, [GlobalPool()])[0] is program


def test_rows_of_several_images_are_fast(tmp_path: Path) -> None:
    program = exported(Computed(lambda x: x.mean(1) + x.amax(1)), (image(2, ROWS, 7, 5),), tmp_path)
    assert fuse(program, [GlobalPool()])[0] is program


def test_a_prime_number_of_rows_has_no_groups(tmp_path: Path) -> None:
    given = image(1, 37, 3, 2)
    program = exported(Computed(lambda x: x.amax(1) + x.mean(1)), (given,), tmp_path)
    fused = GlobalPool()(program)
    assert operators(fused) == ["ReduceMax", "MatMul", "Add"]
    same(fused, program, given)


def test_places_that_are_read_are_refused() -> None:
    def both(x: Tensor) -> Tensor:
        found = x.max(1)
        return found.values + found.indices

    program = traced(Computed(both), (image(),))
    fused, record = fuse(program, [GlobalPool()])
    assert fused is program
    assert [m.reason for m in record.matches] == ["the places of the maxima are read, too"]


def test_numbers_that_are_no_numbers_stay(tmp_path: Path) -> None:
    given = image()
    given[0, 3, 2, 1], given[0, 5, 0, 0], given[0, :, 6, 4] = float("nan"), float("inf"), -float("inf")
    formula = Computed(lambda x: torch.cat([x.amax(1), F.adaptive_max_pool2d(x, (7, 1))[..., 0].mT], 2))
    fused = GlobalPool()(traced(formula, (image(),)))
    assert operators(fused).count("amax") == 2
    np.testing.assert_array_equal(fused.run(given)[0], formula(given).numpy())


@pytest.mark.parametrize("size", [(7, 5), (1, 1), (2, 9)], ids=str)
def test_dynamic_sizes(size: tuple[int, int], tmp_path: Path) -> None:
    formula = Computed(lambda x: x.amax(1) - x.mean(1))
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        formula,
        (image(),),
        str(path),
        opset_version=18,
        dynamo=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "b", 2: "h", 3: "w"}},
    )
    program = rewriter.load(path)
    fused, record = fuse(program, [GlobalPool()])
    assert len(record.committed) == 2
    for batch in (1, 3):
        same(fused, program, image(batch, ROWS, *size))


def test_dynamic_sizes_in_fx() -> None:
    shapes = ({0: Dim("b"), 2: Dim("h"), 3: Dim("w")},)
    program = rewriter.trace(
        Computed(lambda x: x.max(1).values), (image(2, 8, 7, 5),), dynamic_shapes={"x": shapes}
    )
    fused = GlobalPool()(program)
    assert "amax" in operators(fused) and "max" not in operators(fused)
    same(fused, program, image(3, 8, 2, 9))


def test_what_is_pooled_is_read_off_the_form() -> None:
    program = traced(Computed(lambda x: x.transpose(1, 2).mean((0, 3), keepdim=True)), (image(),))
    (pool,) = [p for prim in program.prims().values() if (p := pool_of(prim))]
    assert (pool.of, pool.axes) == ("mean", (0, 3))
    whole = unturned(pool.x)
    (x,) = program.graph.inputs
    assert (whole.prim.value, whole.order, whole.turned, whole.copied) == (x, (None, 2, 1, 3), True, False)


def test_slow_rows() -> None:
    n, rows = Size.symbol("n"), Size.of(ROWS)
    assert slow_rows((ONE, rows, n), (1,)) == (ONE, ROWS, n)
    assert slow_rows((n, rows, n), (1,)) == (n, ROWS, n)
    assert slow_rows((rows, rows, n), (1,)) is None  # several matrices
    assert slow_rows((ONE, rows, n), (1, 2)) is None  # nothing is left of a row
    assert slow_rows((ONE, n, rows), (1,)) is None  # how many rows is not known
    assert slow_rows((ONE, rows, rows, rows), (1, 3)) is None  # not together


def test_means_of_whole_numbers_are_rounded() -> None:
    """64 sevens have the mean 7; a product with 1/64, which is 0 as a whole number, is none."""
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> counts (int32[1, 64, 5, 5] x) => (int32[1, 1, 5, 5] y)'
        "{ y = ReduceMean <axes = [1]> (x) }"
    )
    program = OnnxProgram(onnx.parser.parse_model(text))
    made, record = fuse(program, [GlobalPool()])
    assert made is program and not record.matches
