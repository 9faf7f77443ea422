"""Maps weighed by a softmax over them: the kernel, the operator and its gradient against the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import rewriter
import rewriter.operators
from rewriter.kernel_sources import KernelCall, small
from rewriter.kernels.weighed.definition import by_settings
from rewriter.kernels.weighed.gradient import weighed_gradient
from rewriter.passes import BranchSoftmax
from rewriter.rules import fuse
from tests.blocks.graphs import Computed
from tests.kernels.launched import assert_near, poisoned

pytest.importorskip("triton")

CASES = {
    "one place": (2, (1, 3, 1), (2, 1, 3, 1)),
    "channels": (2, (2, 3, 5, 7), (2, 2, 3, 1, 1)),
    "places": (3, (1, 2, 5, 7), (3, 1, 1, 5, 7)),
    "elements": (2, (1, 2, 33), (2, 1, 2, 33)),
    "eight maps": (8, (1, 2, 3, 3), (8, 1, 2, 1, 1)),
    "one score each": (4, (2, 2, 3), (4, 1, 1, 1)),
    "a row longer than a tile": (2, (1, 1, 1100), (2, 1, 1, 1)),
    "vectors": (2, (5,), (2, 1)),
}


def operands(count: int, shape: tuple[int, ...], scores: tuple[int, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return (
        3 * torch.randn(scores, generator=generator),
        *(torch.randn(shape, generator=generator) for _ in range(count)),
    )


def test_definition_is_a_loop_over_elements() -> None:
    scores, x, y = operands(2, (2, 3), (2, 2, 1))
    found = by_settings(scores.double(), x.double(), y.double())
    for b in range(2):
        a, c = (math.exp(float(scores[n, b, 0])) for n in range(2))
        for k in range(3):
            want = (a * float(x[b, k]) + c * float(y[b, k])) / (a + c)
            assert found[b, k].item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_kernel_meets_the_definition(name: str, dtype: torch.dtype) -> None:
    from rewriter.kernels.weighed.fused_triton import forward

    given = [x.to(dtype) for x in operands(*CASES[name])]
    with poisoned():
        found, _ = forward(*given)
    assert_near(found, by_settings(*given), dtype)


def test_kernel_reads_any_strides_and_huge_scores() -> None:
    from rewriter.kernels.weighed.fused_triton import forward

    scores, *maps = operands(2, (2, 3, 5, 7), (2, 2, 3, 1, 1))
    turned = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in maps]
    assert_near(forward(1e4 * scores, *turned)[0], by_settings(1e4 * scores, *maps), torch.float32)
    hidden = torch.full_like(scores, -math.inf)
    assert forward(hidden, *maps)[0].isnan().all()


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_that_of_the_definition(name: str) -> None:
    given = [x.double().requires_grad_() for x in operands(*CASES[name])]
    out = by_settings(*given)
    grad = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(1))
    want = torch.autograd.grad(out, given, grad)
    for found, wanted in zip(weighed_gradient(grad, *(x.detach() for x in given)), want, strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_operator_is_a_good_one() -> None:
    given = [x.requires_grad_() for x in operands(3, (2, 3, 5), (3, 2, 3, 1))]
    torch.library.opcheck(torch.ops.rewriter.weighed, tuple(given))


def test_the_rule_emits_it_for_the_target() -> None:
    def branches(a: Tensor, *x: Tensor) -> Tensor:
        return (torch.stack(x, 1) * a.softmax(1)).sum(1)

    scores, *maps = operands(3, (2, 3, 5, 7), (2, 3, 3, 1, 1))
    program = rewriter.trace(Computed(branches), (scores, *maps))
    fused, record = fuse(program, [BranchSoftmax()], target="triton")
    assert [m.reason for m in record.matches] == [None]
    assert any("weighed" in node.op for node in fused.graph.nodes)
    got, want = (np.asarray(p.run(scores, *maps)[0]) for p in (fused, program))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_a_package_of_kernels_tests_it_on_small_maps() -> None:
    call = KernelCall("weighed", (((2, 4, 64, 1, 1), "float16"), *[((4, 64, 56, 5), "float16")] * 2), {})
    assert [x[0] for x in small(call).operands if x] == [(2, 4, 6, 1, 1), (4, 6, 6, 5), (4, 6, 6, 5)]
