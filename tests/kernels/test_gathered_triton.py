from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from rewriter.forms import Canonical
from rewriter.kernels.softmax.definition import softmax_attention
from tests.kernels.launched import assert_near, in_padded_buffers, poisoned, tensors
from tests.kernels.operands import canonical, operands

pytest.importorskip("triton")

SMALL: dict[str, Any] = {"batch": 1, "heads": 2, "groups": 1}

CASES = {
    "plain": canonical(5, 67, **SMALL),
    "one query": canonical(1, 67, **SMALL),
    "one key": canonical(5, 1, **SMALL),
    "one of each": canonical(1, 1, **SMALL),
    "more queries than a tile": canonical(19, 33, **SMALL),
    "several batches and groups": canonical(3, 40, batch=2, heads=4, groups=2),
    "bias of keys": canonical(5, 67, bias="keys", **SMALL),
    "bias of one head": canonical(5, 67, bias="one batch", **SMALL),
    "bias of everything": canonical(5, 67, bias="full", **SMALL),
}


def run(a: Canonical, runs: int | None = 4) -> torch.Tensor:
    from rewriter.kernels.gathered.fused_triton import forward

    with poisoned():
        out, _ = forward(*tensors(a)[:4], scale=a.scale, tile=16, runs=runs)
    assert out.dtype == a.q.dtype
    return out


@pytest.mark.parametrize("runs", [1, 3, None])
@pytest.mark.parametrize("name", CASES)
def test_kernel_meets_the_definition(name: str, runs: int | None) -> None:
    a = CASES[name]
    assert_near(run(a, runs), softmax_attention(operands(a)), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    a = canonical(5, 67, bias="keys", dtype=dtype, **SMALL)
    assert_near(run(a), softmax_attention(operands(a)), dtype)


def test_buffers_are_read_where_they_are_valid_only() -> None:
    a = canonical(5, 67, bias="full", **SMALL)
    padded = in_padded_buffers(a)
    assert not padded.q.is_contiguous() and torch.equal(padded.q, a.q)
    torch.testing.assert_close(run(padded), run(a), rtol=0, atol=0)


def test_runs_that_are_hidden_count_for_nothing_and_rows_that_see_nothing_give_zero() -> None:
    a = canonical(5, 67, bias="full", **SMALL)
    assert a.bias is not None
    a.bias[..., :20], a.bias[..., 50:] = -math.inf, -math.inf
    assert_near(run(a), softmax_attention(operands(a)), torch.float32)
    a.bias[:, :, 3] = -math.inf
    found, want = run(a), softmax_attention(operands(a))
    want[:, :, 3] = 0.0
    assert_near(found, want, torch.float32)


def test_huge_scores_do_not_overflow_and_nan_is_not_hidden() -> None:
    a = canonical(5, 67, **SMALL)
    a = replace(a, q=a.q * 1e4, k=a.k * 1e4)
    assert_near(run(a), softmax_attention(operands(a)), torch.float32)
    a.k[0, 0, 66] = math.nan
    assert run(a).isnan().all()


@pytest.mark.parametrize("bias", [None, "keys", "full"])
def test_operator_has_all_that_pytorch_asks_for(bias: str | None) -> None:
    import rewriter.operators  # noqa: F401

    a = canonical(5, 23, bias=bias, **SMALL)
    given = [x.clone().requires_grad_() for x in (a.q, a.k, a.v)]
    arguments = (*given, a.bias)
    torch.library.opcheck(torch.ops.rewriter.gathered, arguments, {"scale": a.scale})
    out, _ = torch.ops.rewriter.gathered(*arguments, scale=a.scale)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(out, given, grad)
    q, k, v = given
    want = torch.autograd.grad(softmax_attention(operands(replace(a, q=q, k=k, v=v))), given, grad)
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
