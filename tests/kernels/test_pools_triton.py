"""Several pools of one map: the kernel, the operator and its gradient against the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import rewriter
import rewriter.operators
from rewriter.kernel_sources import KernelCall, small
from rewriter.kernels.pools.definition import by_settings
from rewriter.kernels.pools.gradient import pools_gradient
from rewriter.kernels.pools.operator import why_no_kernel
from rewriter.passes import JointPools
from rewriter.rules import fuse
from tests.blocks.graphs import Computed, traced
from tests.kernels.launched import assert_near, poisoned

pytest.importorskip("triton")

SHAPES = [(1, 1, 1), (3, 7, 1), (2, 5, 9), (1, 1100, 1), (2, 1, 130), (1, 9, 300), (2, 130, 3)]


def maps(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_definition_is_a_loop_over_elements() -> None:
    x = maps(2, 3, 4).double()
    pooled, lines = by_settings(x), by_settings(x, over="lines")
    for n in range(2):
        for p in range(4):
            column = [float(x[n, r, p]) for r in range(3)]
            assert float(pooled[0, n, p]) == pytest.approx(sum(column) / 3, rel=1e-12)
            assert float(pooled[1, n, p]) == max(column)
            assert float(lines[n, 3 + p]) == pytest.approx(sum(column) / 3, rel=1e-12)
        for r in range(3):
            row = [float(x[n, r, p]) for p in range(4)]
            assert float(lines[n, r]) == pytest.approx(sum(row) / 4, rel=1e-12)


@pytest.mark.parametrize("over", ["rows", "lines"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernel_meets_the_definition(shape: tuple[int, int, int], dtype: torch.dtype, over: str) -> None:
    from rewriter.kernels.pools.fused_triton import forward

    x = maps(*shape).to(dtype)
    with poisoned():
        found, _ = forward(x, over=over)
    assert_near(found, by_settings(x, over=over), dtype)


def test_kernel_reads_any_strides_and_numbers_that_are_none() -> None:
    from rewriter.kernels.pools.fused_triton import forward

    x = maps(2, 7, 5)
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    for over in ("rows", "lines"):
        assert_near(forward(turned, over=over)[0], by_settings(x, over=over), torch.float32)
    x[0, 3, 1], x[0, 0, 2], x[1, :, 4] = math.nan, math.inf, -math.inf
    found = forward(x)[0]
    np.testing.assert_array_equal(found[1], x.amax(1))
    assert found[0, 0, 1].isnan() and found[0, 0, 2].isposinf() and found[0, 1, 4].isneginf()


def test_no_maps_at_all() -> None:
    from rewriter.kernels.pools.fused_triton import forward

    assert forward(maps(0, 3, 4))[0].shape == (2, 0, 4)
    assert forward(maps(0, 3, 4), over="lines")[0].shape == (0, 7)


@pytest.mark.parametrize("over", ["rows", "lines"])
@pytest.mark.parametrize("shape", [(2, 5, 9), (1, 1, 1), (3, 7, 1)], ids=str)
def test_gradient_is_that_of_the_definition(shape: tuple[int, int, int], over: str) -> None:
    x = maps(*shape).double()
    x[0, -1] = x[0, 0]  # equal entries
    x.requires_grad_()
    out = by_settings(x, over=over)
    grad = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    (want,) = torch.autograd.grad(out, x, grad)
    torch.testing.assert_close(pools_gradient(grad, x.detach(), over=over)[0], want)


@pytest.mark.parametrize("over", ["rows", "lines"])
def test_the_operator_is_a_good_one(over: str) -> None:
    torch.library.opcheck(torch.ops.rewriter.pools, (maps(2, 3, 5).requires_grad_(),), {"over": over})


def test_why_there_is_no_kernel() -> None:
    assert why_no_kernel(maps(1, 2, 3), over="lines") is None
    assert "float64" in (why_no_kernel(maps(1, 2, 3).double(), over="rows") or "")
    assert "longer than" in (why_no_kernel(maps(1, 1, 5000), over="lines") or "")
    assert why_no_kernel(maps(1, 1, 5000), over="rows") is None


def spatial(x: Tensor) -> Tensor:
    return torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)


def channel(x: Tensor) -> Tensor:
    return x.mean((2, 3)) + x.amax((2, 3))


def strips(x: Tensor) -> Tensor:
    return x.mean(3, keepdim=True) + x.mean(2, keepdim=True)


def turned_strips(x: Tensor) -> Tensor:
    return torch.cat([x.mean(2), x.mean(3)], 2)


@pytest.mark.parametrize("size", [(7, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("fn", [spatial, channel, strips, turned_strips], ids=lambda fn: fn.__name__)
def test_the_rule_emits_it_for_the_target(fn: object, size: tuple[int, int]) -> None:
    x = maps(2, 16, *size)
    program = traced(Computed(fn), (x,))  # type: ignore[arg-type]
    fused, record = fuse(program, [JointPools()], target="triton")
    if size == (7, 5):
        assert [m.reason for m in record.matches] == [None]
        assert sum("pools" in node.op for node in fused.graph.nodes) == 1
    got, want = (np.asarray(p.run(x)[0]) for p in (fused, program))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_other_targets_have_no_such_operator() -> None:
    program = traced(Computed(channel), (maps(2, 16, 7, 5),))
    fused, record = fuse(program, [JointPools()])
    assert fused is program
    assert "pools one map twice" in (record.matches[0].reason or "")
    assert "no faster" in (fuse(program, [JointPools(asked=False)])[1].matches[0].reason or "")


def apart(x: Tensor) -> Tensor:
    return x.mean(1) + x.exp().amax(1)


def other_axes(x: Tensor) -> Tensor:
    return x.mean((2, 3)).sum() + x.amax(1)


def twice_the_mean(x: Tensor) -> Tensor:
    return x.mean(1) * x.mean(1)


@pytest.mark.parametrize("fn", [apart, other_axes, twice_the_mean], ids=lambda fn: fn.__name__)
def test_keeps(fn: object) -> None:
    program = traced(Computed(fn), (maps(2, 16, 7, 5),))  # type: ignore[arg-type]
    fused, record = fuse(program, [JointPools()], target="triton")
    assert fused is program and not record.matches


def test_a_package_of_kernels_tests_it_on_small_maps() -> None:
    call = KernelCall("pools", (((512, 4096, 56), "float16"),), {"over": "lines"})
    assert small(call).operands == (((6, 6, 6), "float16"),)
    assert small(call).settings == {"over": "lines"}
    assert rewriter.operators.OPERATORS.count("pools") == 1
