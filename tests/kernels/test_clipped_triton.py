from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from rewriter.algebra.sizes import Size
from rewriter.forms import Canonical
from rewriter.kernels.clipped.definition import clipped_attention
from rewriter.kernels.clipped.form import Clipped
from rewriter.kernels.clipped.gradient import clipped_gradient
from rewriter.kernels.softmax.definition import band_mask
from rewriter.kernels.softmax.gradient import Gradients
from rewriter.sites.site import Band
from tests.kernels.launched import assert_near, in_padded_buffers, poisoned, tensors
from tests.kernels.operands import CAUSAL, canonical, operands

pytest.importorskip("triton")

SMALL: dict[str, Any] = {"batch": 1, "heads": 2, "groups": 1}
STRETCH = {"zeta": 1.3, "gamma": -0.03}
"""Cuts off weights at both ends of rows of 1 to 50 keys."""


def settings(a: Canonical) -> dict[str, Any]:
    found: dict[str, Any] = {"scale": a.scale, "softcap": a.softcap, **STRETCH}
    if a.band is not None:
        found |= {"offset": int(a.band.offset), "left": a.band.left, "right": a.band.right}
    return found


def defined(a: Canonical) -> torch.Tensor:
    return clipped_attention(operands(a), **STRETCH)


def run(a: Canonical, tile: int = 16) -> torch.Tensor:
    from rewriter.kernels.clipped.fused_triton import forward

    with poisoned():
        out, _ = forward(*tensors(a), **settings(a), tile=tile)
    assert out.dtype == a.q.dtype
    return out


def gradients(
    a: Canonical, grad: torch.Tensor, wanted: tuple[bool, ...] = (True,) * 5
) -> tuple[torch.Tensor | None, ...]:
    from rewriter.kernels.clipped.fused_triton import backward, forward

    with poisoned():
        out, lse = forward(*tensors(a), **settings(a), tile=16)
        return backward(grad, out, lse, *tensors(a), wanted=wanted, **settings(a), tile=16)


def formulas(a: Canonical, grad: torch.Tensor) -> Gradients:
    x = operands(a)
    return clipped_gradient(x, band_mask(x.band, a.q.shape[2], a.k.shape[2]), grad, **STRETCH)


def random_gradient(a: Canonical) -> torch.Tensor:
    shape = (*a.q.shape[:3], a.v.shape[3])
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(a.q.dtype)


CASES = {
    "plain": canonical(19, 37, **SMALL),
    "one query": canonical(1, 37, **SMALL),
    "one key": canonical(19, 1, **SMALL),
    "several batches and groups": canonical(3, 5, batch=2, heads=4, groups=2),
    "causal": canonical(33, 33, band=CAUSAL, **SMALL),
    "causal behind a cache": canonical(19, 37, band=Band(Size.of(18), None, 0), **SMALL),
    "band that skips tiles": canonical(50, 50, band=Band(Size.of(0), 3, 2), **SMALL),
    "bias of keys": canonical(19, 37, bias="keys", **SMALL),
    "bias of one head": canonical(19, 37, bias="one batch", **SMALL),
    "soft cap, bias and sinks": canonical(19, 20, bias="full", softcap=0.7, sink="full", **SMALL),
    "two sinks": canonical(3, 5, bias="keys", sink="batch", batch=2, heads=2, groups=2),
}


@pytest.mark.parametrize("name", CASES)
def test_kernel_meets_the_definition(name: str) -> None:
    a = CASES[name]
    assert_near(run(a), defined(a), torch.float32)


def test_the_cases_cut_off_at_both_ends() -> None:
    from rewriter.kernels.softmax.definition import attention_weights

    a = canonical(33, 33, band=CAUSAL, **SMALL)
    weights = attention_weights(operands(a), band_mask(CAUSAL, 33, 33))
    stretched = (STRETCH["zeta"] - STRETCH["gamma"]) * weights + STRETCH["gamma"]
    assert (stretched > 1).any() and ((stretched < 0) & (weights > 0)).any() and (stretched > 0).any()


@pytest.mark.parametrize("name", CASES)
def test_gradients_meet_the_formulas(name: str) -> None:
    a, grad = CASES[name], random_gradient(CASES[name])
    wanted = tuple(x is not None for x in tensors(a))
    for found, want in zip(gradients(a, grad, wanted), formulas(a, grad), strict=True):
        assert_near(found, want, torch.float32)


@pytest.mark.parametrize("name", CASES)
def test_formulas_meet_automatic_differentiation(name: str) -> None:
    a = CASES[name]
    given = [x.double().requires_grad_() if x is not None else None for x in tensors(a)]
    q, k, v, bias, sink = given
    a = replace(a, q=q, k=k, v=v, bias=bias, sink=sink)
    grad = random_gradient(a)
    want = torch.autograd.grad(defined(a), [x for x in given if x is not None], grad)
    with torch.no_grad():
        found = [g for g in formulas(a, grad) if g is not None]
    torch.testing.assert_close(tuple(found), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    a = canonical(19, 37, bias="full", band=Band(Size.of(18), None, 0), sink="heads", dtype=dtype, **SMALL)
    assert_near(run(a), defined(a), dtype)
    grad = random_gradient(a)
    for found, want in zip(gradients(a, grad), formulas(a, grad), strict=True):
        assert found is not None and found.dtype == dtype
        assert_near(found, want, dtype)


def test_buffers_are_read_where_they_are_valid_only() -> None:
    a = canonical(19, 21, bias="full", sink="heads", band=CAUSAL, **SMALL)
    padded = in_padded_buffers(a)
    assert not padded.q.is_contiguous() and torch.equal(padded.q, a.q)
    torch.testing.assert_close(run(padded), run(a), rtol=0, atol=0)
    grad = torch.randn(1, 2, 6, 19).transpose(2, 3)
    for found, want in zip(gradients(padded, grad), formulas(a, grad), strict=True):
        assert_near(found, want, torch.float32)


def test_rows_that_see_nothing_give_zero_and_pass_no_gradient_on() -> None:
    a = canonical(19, 20, bias="full", **SMALL)
    assert a.bias is not None
    a.bias[:, :, 3] = -math.inf
    out = run(a)
    assert (out[:, :, 3] == 0).all() and (out[:, :, 2] != 0).any()
    assert_near(out, defined(a), torch.float32)
    found = gradients(a, torch.ones_like(out))
    assert found[0] is not None and (found[0][:, :, 3] == 0).all()
    assert all(g.isfinite().all() for g in found if g is not None)


def test_nan_in_an_operand_is_not_hidden() -> None:
    a = canonical(19, 20, **SMALL)
    a.k[0, 0, 18] = math.nan
    assert run(a).isnan().all()


def test_only_what_is_wanted_is_computed() -> None:
    a = canonical(3, 5, bias="full", sink="heads", **SMALL)
    found = gradients(a, random_gradient(a), (True, False, False, False, True))
    assert [g is None for g in found] == [False, True, True, True, False]


@pytest.mark.parametrize("tile", [32, 64])
def test_tiles_of_every_size_agree(tile: int) -> None:
    a = canonical(33, 35, band=Band(Size.of(2), 9, 0), **SMALL)
    assert_near(run(a, tile), defined(a), torch.float32)


def test_alpha_is_gamma_by_the_number_of_keys() -> None:
    from rewriter.kernels.clipped.fused_triton import forward

    a = canonical(3, 20, **SMALL)
    found, _ = forward(*tensors(a), scale=a.scale, alpha=1.0, tile=16)
    assert_near(found, Clipped(alpha=1.0).definition(operands(a)), torch.float32)


class Call(torch.nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out, _ = torch.ops.rewriter.clipped(q, k, v, scale=0.3, right=0, gamma=-0.05)
        result: torch.Tensor = out
        return result


def test_the_operator_is_exported_and_differentiated() -> None:
    import rewriter.operators  # noqa: F401

    a = canonical(19, band=CAUSAL, heads=2, groups=1)
    given = [x.requires_grad_() for x in (a.q, a.k, a.v)]
    torch.library.opcheck(
        torch.ops.rewriter.clipped.default, tuple(given), {"scale": 0.3, "right": 0, "gamma": -0.05}
    )
    found = Call()(*given)
    want = clipped_attention(operands(a), zeta=1.0, gamma=-0.05)
    assert_near(found.detach(), want.detach(), torch.float32)
    exported = torch.export.export(Call(), tuple(x.detach() for x in given)).module()
    torch.testing.assert_close(exported(*given), found, rtol=0, atol=0)
    grads = [torch.autograd.grad(x.sum(), given) for x in (found, want)]
    for got, right in zip(*grads, strict=True):
        assert_near(got, right, torch.float32)


def test_the_target_emits_the_operator() -> None:
    import rewriter
    from rewriter.passes import ClippedAttention, GatedAttention

    class Block(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    a = canonical(19, heads=2, groups=2)
    given = (a.q, a.k, a.v)
    program = rewriter.trace(Block(), given)
    for step, name in (
        (ClippedAttention(gamma=-0.01, target="triton"), "rewriter.clipped"),
        (ClippedAttention(target="triton"), "rewriter.softmax"),
        (GatedAttention(bias=1.0, target="triton"), "rewriter.softmax"),
    ):
        new = step(program)
        assert step.report is not None and [s.reason for s in step.report.sites] == [None]
        assert any(name in str(node.op).replace("::", ".") for node in new.graph.nodes)
        x = replace(operands(a), scale=8**-0.5, band=CAUSAL)
        assert_near(torch.as_tensor(new.run(*given)[0]), step.form.definition(x), torch.float32)
