from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from rewriter.algebra.sizes import Size
from rewriter.forms import Canonical
from rewriter.kernels.softmax.definition import band_mask, softmax_attention
from rewriter.kernels.softmax.gradient import Gradients, softmax_gradient
from rewriter.sites.site import Band
from tests.kernels.launched import assert_near, in_padded_buffers, poisoned, tensors
from tests.kernels.operands import CAUSAL, canonical, operands

pytest.importorskip("triton")

SMALL: dict[str, Any] = {"batch": 1, "heads": 2, "groups": 1}


def settings(a: Canonical) -> dict[str, Any]:
    found: dict[str, Any] = {"scale": a.scale, "softcap": a.softcap, "empty_row": a.empty_row}
    if a.band is not None:
        found |= {"offset": int(a.band.offset), "left": a.band.left, "right": a.band.right}
    return found


def run(a: Canonical, tile: int = 16) -> torch.Tensor:
    from rewriter.kernels.softmax.fused_triton import forward

    with poisoned():
        out, _ = forward(*tensors(a), **settings(a), tile=tile)
    assert out.dtype == a.q.dtype
    return out


def gradients(a: Canonical, grad: torch.Tensor, wanted: tuple[bool, ...]) -> tuple[torch.Tensor | None, ...]:
    from rewriter.kernels.softmax.fused_triton import backward, forward

    with poisoned():
        out, lse = forward(*tensors(a), **settings(a), tile=16)
        return backward(grad, out, lse, *tensors(a), wanted=wanted, **settings(a), tile=16)


def formulas(a: Canonical, grad: torch.Tensor) -> Gradients:
    x = operands(a)
    return softmax_gradient(x, band_mask(x.band, a.q.shape[2], a.k.shape[2]), grad)


CASES = {
    "plain": canonical(19, 37, **SMALL),
    "one query": canonical(1, 37, **SMALL),
    "one key": canonical(19, 1, **SMALL),
    "one of each": canonical(1, 1, **SMALL),
    "several batches and groups": canonical(3, 5, batch=2, heads=4, groups=2),
    "causal": canonical(33, 33, band=CAUSAL, **SMALL),
    "causal behind a cache": canonical(19, 37, band=Band(Size.of(18), None, 0), **SMALL),
    "band that skips tiles": canonical(50, 50, band=Band(Size.of(0), 3, 2), **SMALL),
    "band behind all keys": canonical(3, 20, band=Band(Size.of(15), None, -16), **SMALL),
    "bias of keys": canonical(19, 37, bias="keys", **SMALL),
    "bias of one head": canonical(19, 37, bias="one batch", **SMALL),
    "soft cap": canonical(19, 37, softcap=0.7, **SMALL),
    "soft cap, bias and sinks": canonical(19, 20, bias="full", softcap=0.7, sink="full", **SMALL),
    "sink of each head": canonical(19, 20, band=CAUSAL, sink="heads", **SMALL),
    "two sinks": canonical(3, 5, bias="keys", sink="batch", batch=2, heads=2, groups=2),
}


def with_nan_rows(a: Canonical) -> Canonical:
    """Rows that see nothing give NaN, as in the definition."""
    return replace(a, empty_row="nan")


@pytest.mark.parametrize("name", CASES)
def test_kernel_meets_the_definition(name: str) -> None:
    a = with_nan_rows(CASES[name])
    assert_near(run(a), softmax_attention(operands(a)), torch.float32)


@pytest.mark.parametrize("name", CASES)
def test_gradients_meet_the_formulas(name: str) -> None:
    a = CASES[name]
    grad = torch.randn(*a.q.shape[:3], a.v.shape[3], generator=torch.Generator().manual_seed(1))
    wanted = tuple(x is not None for x in tensors(a))
    for found, want in zip(gradients(a, grad, wanted), formulas(a, grad), strict=True):
        assert_near(found, want, torch.float32)


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"band behind all keys"}))
def test_formulas_meet_automatic_differentiation(name: str) -> None:
    a = CASES[name]
    given = [x.double().requires_grad_() if x is not None else None for x in tensors(a)]
    q, k, v, bias, sink = given
    assert q is not None and k is not None and v is not None
    a = replace(a, q=q, k=k, v=v, bias=bias, sink=sink)
    result = softmax_attention(operands(a))
    assert result.isfinite().all()
    grad = torch.randn_like(result)
    want = torch.autograd.grad(result, [x for x in given if x is not None], grad)
    with torch.no_grad():
        found = [g for g in formulas(a, grad) if g is not None]
    torch.testing.assert_close(tuple(found), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    a = canonical(19, 37, bias="full", band=Band(Size.of(18), None, 0), sink="heads", dtype=dtype, **SMALL)
    assert_near(run(a), softmax_attention(operands(a)), dtype)
    grad = torch.randn(1, 2, 19, 6, generator=torch.Generator().manual_seed(1)).to(dtype)
    for found, want in zip(gradients(a, grad, (True,) * 5), formulas(a, grad), strict=True):
        assert found is not None and found.dtype == dtype
        assert_near(found, want, dtype)


def test_buffers_are_read_where_they_are_valid_only() -> None:
    a = canonical(19, 21, bias="full", sink="heads", band=CAUSAL, **SMALL)
    padded = in_padded_buffers(a)
    assert not padded.q.is_contiguous() and torch.equal(padded.q, a.q)
    torch.testing.assert_close(run(padded), run(a), rtol=0, atol=0)
    grad = torch.randn(1, 2, 6, 19).transpose(2, 3)
    for found, want in zip(gradients(padded, grad, (True,) * 5), formulas(a, grad), strict=True):
        assert_near(found, want, torch.float32)


@pytest.mark.parametrize(("empty_row", "gives"), [("nan", math.nan), ("zero", 0.0), ("never", 0.0)])
def test_rows_that_see_nothing(empty_row: Any, gives: float) -> None:
    a = replace(canonical(19, 20, bias="full", **SMALL), empty_row=empty_row)
    assert a.bias is not None
    a.bias[:, :, 3] = -math.inf
    out = run(a)
    want = softmax_attention(operands(a))
    want[:, :, 3] = gives
    assert_near(out, want, torch.float32)
    grad = torch.ones_like(out)
    found = gradients(replace(a, empty_row="zero"), grad, (True,) * 5)
    assert found[0] is not None and (found[0][:, :, 3] == 0).all()
    assert all(g.isfinite().all() for g in found if g is not None)


def test_a_finite_mask_over_everything_gives_the_mean() -> None:
    a = canonical(3, 20, bias="full", **SMALL)
    assert a.bias is not None
    a.bias[:] = torch.finfo(torch.float32).min
    assert_near(run(a), a.v.mean(2, keepdim=True).expand(1, 2, 3, 6), torch.float32)


def test_huge_scores_do_not_overflow() -> None:
    a = canonical(19, 20, **SMALL)
    a = replace(a, q=a.q * 1e4, k=a.k * 1e4)
    assert_near(run(a), softmax_attention(operands(a)), torch.float32)


def test_nan_in_an_operand_is_not_hidden() -> None:
    a = canonical(19, 20, **SMALL)
    a.k[0, 0, 18] = math.nan
    assert run(a).isnan().all()


def test_only_what_is_wanted_is_computed() -> None:
    a = canonical(3, 5, bias="full", sink="heads", **SMALL)
    grad = torch.randn(1, 2, 3, 6)
    found = gradients(a, grad, (True, False, True, False, True))
    assert [g is None for g in found] == [False, True, False, True, False]


@pytest.mark.parametrize("tile", [16, 32, 64])
def test_tiles_of_every_size_agree(tile: int) -> None:
    a = canonical(33, 35, band=Band(Size.of(2), 9, 0), **SMALL)
    assert_near(run(a, tile), softmax_attention(operands(a)), torch.float32)
