from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rewriter.forms import Canonical
from rewriter.kernels.pooled.definition import pooled_attention
from rewriter.kernels.pooled.gradient import pooled_gradient
from tests.kernels.launched import assert_near, in_padded_buffers, poisoned, tensors
from tests.kernels.operands import CAUSAL, canonical, operands

pytest.importorskip("triton")

Case = tuple[Canonical, dict[str, Any]]


def case(tokens: int, window: Any, stride: Any, pool: Any, a: Any = None, **settings: Any) -> Case:
    given: dict[str, Any] = {"batch": 1, "heads": 2, "groups": 1, **(a or {})}
    return canonical(tokens, **given), {"window": window, "stride": stride, "pool": pool, **settings}


CASES: dict[str, Case] = {
    "line": case(37, (8,), (4,), (2,)),
    "sinks": case(50, (4,), (4,), (4,), sinks=2),
    "one token": case(1, (4,), (2,), (2,), sinks=1),
    "one cell": case(3, (4,), (4,), (4,)),
    "causal": case(50, (8,), (4,), (4,), a={"band": CAUSAL}),
    "causal with sinks": case(37, (6,), (3,), (3,), a={"band": CAUSAL}, sinks=3),
    "more sinks than a group has queries": case(37, (6,), (3,), (3,), sinks=8),
    "causal with more sinks": case(37, (6,), (3,), (3,), a={"band": CAUSAL}, sinks=8),
    "fewer tokens than sinks": case(5, (4,), (2,), (2,), a={"band": CAUSAL}, sinks=8),
    "hidden keys": case(37, (6,), (2,), (2,), a={"bias": "keys", "batch": 2, "heads": 4, "groups": 2}),
    "soft cap and sinks of heads": case(26, (4,), (2,), (2,), a={"softcap": 0.7, "sink": "full"}),
    "grid": case(7 * 10, (4, 4), (2, 2), (2, 2), grid=(7, 10)),
    "class token": case(1 + 8 * 6, (4, 4), (4, 4), (2, 2), grid=(8, 6), sinks=1),
    "cells of two sizes": case(17 + 6 * 8, (4, 8), (2, 4), (2, 4), grid=(6, 8), sinks=17),
    "three axes": case(2 + 3 * 4 * 5, (2, 2, 2), (2, 2, 2), (2, 2, 2), grid=(3, 4, 5), sinks=2),
    "grid with hidden keys": case(
        1 + 6 * 6, (4, 4), (2, 2), (2, 2), a={"bias": "keys"}, grid=(6, 6), sinks=1
    ),
}


def settings(a: Canonical, axes: dict[str, Any]) -> dict[str, Any]:
    band = {} if a.band is None else {"right": a.band.right}
    return {**axes, **band, "scale": a.scale, "softcap": a.softcap}


def run(a: Canonical, axes: dict[str, Any], tile: int = 16) -> torch.Tensor:
    from rewriter.kernels.pooled.fused_triton import forward

    with poisoned():
        out, _ = forward(*tensors(a), **settings(a, axes), tile=tile)
    assert out.dtype == a.q.dtype
    return out


@pytest.mark.parametrize("name", CASES)
def test_kernel_meets_the_definition(name: str) -> None:
    a, axes = CASES[name]
    assert_near(run(a, axes), pooled_attention(operands(a), **axes), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("grid", [None, (6, 6)], ids=["line", "grid"])
def test_half_precision(grid: tuple[int, int] | None, dtype: torch.dtype) -> None:
    axes = {name: (n,) * (2 if grid else 1) for name, n in (("window", 4), ("stride", 2), ("pool", 2))}
    a = canonical(37, batch=1, heads=2, groups=1, bias="keys", dtype=dtype)
    assert_near(
        run(a, {**axes, "grid": grid, "sinks": 1}),
        pooled_attention(operands(a), **axes, grid=grid, sinks=1),
        dtype,
    )


def test_buffers_are_read_where_they_are_valid_only() -> None:
    a, axes = case(37, (4,), (2,), (2,), a={"bias": "keys", "sink": "heads"})
    padded = in_padded_buffers(a)
    assert not padded.q.is_contiguous() and torch.equal(padded.q, a.q)
    torch.testing.assert_close(run(padded, axes), run(a, axes), rtol=0, atol=0)


def test_cells_that_are_hidden_count_for_nothing_and_rows_that_see_nothing_give_zero() -> None:
    a, axes = case(37, (4,), (2,), (2,), a={"bias": "keys"})
    assert a.bias is not None
    a.bias[:] = -torch.inf
    assert (run(a, axes) == 0).all()
    a.bias[..., 5] = 0.0
    want = a.v[:, :, 5:6].expand(1, 2, 37, 6)
    assert_near(run(a, axes), want, torch.float32)


def test_nan_in_an_operand_is_not_hidden_and_huge_scores_do_not_overflow() -> None:
    a, axes = CASES["line"]
    large = replace(a, q=a.q * 1e4, k=a.k * 1e4)
    assert_near(run(large, axes), pooled_attention(operands(large), **axes), torch.float32)
    k = a.k.clone()
    k[0, 0, 36] = torch.nan
    assert run(replace(a, k=k), axes).isnan().all()


@pytest.mark.parametrize("tile", [32, 64])
def test_tiles_of_every_size_agree(tile: int) -> None:
    for name in ("causal", "class token"):
        a, axes = CASES[name]
        assert_near(run(a, axes, tile), pooled_attention(operands(a), **axes), torch.float32)


def test_where_every_cell_is_near_it_is_softmax_attention() -> None:
    from rewriter.kernels.softmax.definition import softmax_attention

    a, axes = case(37, (40,), (20,), (2,))
    assert_near(run(a, axes), softmax_attention(operands(a)), torch.float32)


@pytest.mark.parametrize("name", CASES)
def test_formulas_meet_automatic_differentiation(name: str) -> None:
    a, axes = CASES[name]
    if a.bias is not None:  # the logarithm of nothing has no slope
        a = replace(a, bias=a.bias.masked_fill(~a.bias.isfinite(), -3.0))
    given = [x.double().requires_grad_() if x is not None else None for x in tensors(a)]
    q, k, v, bias, sink = given
    assert q is not None and k is not None and v is not None
    a = replace(a, q=q, k=k, v=v, bias=bias, sink=sink)
    result = pooled_attention(operands(a), **axes)
    grad = torch.randn(result.shape, dtype=result.dtype, generator=torch.Generator().manual_seed(1))
    want = torch.autograd.grad(result, [x for x in given if x is not None], grad)
    with torch.no_grad():
        found = [g for g in pooled_gradient(operands(a), grad, **axes) if g is not None]
    torch.testing.assert_close(tuple(found), want, rtol=1e-10, atol=1e-10)


def test_the_gradient_of_hidden_keys_is_finite() -> None:
    a, axes = CASES["hidden keys"]
    grad = torch.ones(2, 4, 37, 6)
    _, of_k, of_v, of_bias, _ = pooled_gradient(operands(a), grad, **axes)
    assert a.bias is not None and of_bias is not None and of_bias.isfinite().all()
    hidden = (a.bias[0, 0, 0] == -torch.inf).nonzero()[:, 0]
    assert (of_k[0, :, hidden] == 0).all() and (of_v[0, :, hidden] == 0).all()
    assert (of_bias[0, 0, 0, hidden] == 0).all()


@pytest.mark.parametrize("name", ["causal with sinks", "class token", "hidden keys"])
def test_operator_has_all_that_pytorch_asks_for(name: str) -> None:
    import rewriter.operators  # noqa: F401

    a, axes = CASES[name]
    given = [x.clone().requires_grad_() for x in (a.q, a.k, a.v)]
    lists = {
        key: list(value) if isinstance(value, tuple) else value for key, value in settings(a, axes).items()
    }
    torch.library.opcheck(torch.ops.rewriter.pooled.default, (*given, a.bias), lists)
    out, _ = torch.ops.rewriter.pooled(*given, a.bias, **lists)
    q, k, v = given
    want = pooled_attention(operands(replace(a, q=q, k=k, v=v)), **axes)
    assert_near(out.detach(), want.detach(), torch.float32)
    for found, right in zip(
        torch.autograd.grad(out.sum(), given), torch.autograd.grad(want.sum(), given), strict=True
    ):
        assert_near(found, right, torch.float32)


def test_the_target_emits_the_operator() -> None:
    import rewriter
    from rewriter.passes import PooledAttention

    class Block(torch.nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    a = canonical(37, heads=2, groups=2)
    given = (a.q, a.k, a.v)
    program = rewriter.trace(Block(), given)
    for window, name in ((8, "rewriter.pooled"), (40, "rewriter.softmax")):
        step = PooledAttention(window=window, pool=4, sinks=1, target="triton")
        new = step(program)
        assert step.report is not None and [s.reason for s in step.report.sites] == [None]
        assert any(name in str(node.op).replace("::", ".") for node in new.graph.nodes)
        x = replace(operands(a), scale=8**-0.5)
        assert_near(torch.as_tensor(new.run(*given)[0]), step.form.definition(x), torch.float32)
