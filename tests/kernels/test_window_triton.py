from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from rewriter.algebra.sizes import Size
from rewriter.forms import Canonical
from rewriter.kernels.softmax.gradient import softmax_gradient
from rewriter.kernels.window.definition import window_attention, window_mask
from rewriter.sites.site import Band
from tests.kernels.launched import assert_near, in_padded_buffers, poisoned, tensors
from tests.kernels.operands import CAUSAL, canonical, operands

pytest.importorskip("triton")

SMALL: dict[str, Any] = {"batch": 1, "heads": 2, "groups": 1}

Case = tuple[Canonical, dict[str, Any]]


def case(queries: int, keys: int | None = None, *, window: Any, a: Any = None, **settings: Any) -> Case:
    heads = {"heads": 1} if "grid" in settings else {}
    return canonical(queries, keys, **{**SMALL, **heads, **(a or {})}), {"window": window, **settings}


CASES: dict[str, Case] = {
    "both sides": case(37, window=(5,)),
    "even": case(37, window=(6,)),
    "one token": case(1, window=(3,)),
    "sinks": case(37, window=(3,), sinks=2),
    "sinks of a tile and more": case(35, window=(3,), sinks=17),
    "causal": case(37, window=(5,), sinks=1, a={"band": CAUSAL}),
    "causal behind a cache": case(3, 50, window=(4,), sinks=2, a={"band": Band(Size.of(47), None, 0)}),
    "narrower band": case(37, window=(9,), a={"band": Band(Size.of(0), 2, 20)}),
    "blocks": case(37, window=(8,), stride=(8,)),
    "shifted blocks": case(37, window=(8,), stride=(8,), phase=(3,), sinks=1),
    "blocks with a halo, causal": case(37, window=(9,), stride=(4,), a={"band": CAUSAL}),
    "dilated": case(37, window=(3,), dilation=(4,), sinks=1),
    "neighbourhood": case(37, window=(5,), borders="shift"),
    "dilated neighbourhood": case(37, window=(5,), dilation=(3,), borders="shift"),
    "blocks behind a cache": case(3, 50, window=(8,), stride=(4,), a={"band": Band(Size.of(40), None, 0)}),
    "grid": case(5 * 7, window=(3, 3), grid=(5, 7)),
    "grid of the last axis": case(17, window=(1, 5), grid=(1, 17)),
    "class token": case(1 + 6 * 7, window=(3, 5), grid=(6, 7), sinks=1),
    "class token and registers": case(17 + 3 * 5, window=(3, 3), grid=(3, 5), sinks=17),
    "blocks of a grid": case(5 * 9, window=(4, 4), stride=(4, 4), phase=(2, 2), grid=(5, 9)),
    "neighbourhood of a grid": case(6 * 8, window=(3, 3), dilation=(1, 2), grid=(6, 8), borders="shift"),
    "three axes": case(1 + 3 * 5 * 4, window=(1, 3, 3), grid=(3, 5, 4), sinks=1),
    "bias, cap and sink": case(20, window=(5,), sinks=1, a={"bias": "full", "softcap": 0.7, "sink": "full"}),
    "several batches and groups": case(
        5, window=(3,), a={"batch": 2, "heads": 4, "groups": 2, "bias": "keys"}
    ),
}

WITH_GRADIENTS = (
    "both sides",
    "sinks",
    "causal behind a cache",
    "shifted blocks",
    "blocks with a halo, causal",
    "dilated neighbourhood",
    "blocks behind a cache",
    "class token",
    "neighbourhood of a grid",
    "three axes",
    "bias, cap and sink",
    "several batches and groups",
)


def settings(a: Canonical, window: dict[str, Any]) -> dict[str, Any]:
    axes = len(window["window"])
    whole = {"stride": (1,) * axes, "dilation": (1,) * axes, "phase": (0,) * axes, **window}
    if a.band is not None:
        whole |= {"offset": int(a.band.offset), "left": a.band.left, "right": a.band.right}
    return {**whole, "scale": a.scale, "softcap": a.softcap, "empty_row": "zero"}


def defined(window: dict[str, Any]) -> dict[str, Any]:
    return {("offset" if name == "phase" else name): value for name, value in window.items()}


def run(a: Canonical, window: dict[str, Any], tile: int = 16) -> torch.Tensor:
    from rewriter.kernels.window.fused_triton import forward

    with poisoned():
        return forward(*tensors(a), **settings(a, window), tile=tile)[0]


@pytest.mark.parametrize("name", CASES)
def test_kernel_meets_the_definition(name: str) -> None:
    a, window = CASES[name]
    assert_near(run(a, window), window_attention(operands(a), **defined(window)), torch.float32)


def gradients(a: Canonical, window: dict[str, Any], grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    from rewriter.kernels.window.fused_triton import backward, forward

    wanted = tuple(x is not None for x in tensors(a))
    with poisoned():
        out, lse = forward(*tensors(a), **settings(a, window), tile=16)
        return backward(grad, out, lse, *tensors(a), wanted=wanted, **settings(a, window), tile=16)


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_gradients_meet_the_formulas(name: str) -> None:
    a, window = CASES[name]
    grad = torch.randn(*a.q.shape[:3], a.v.shape[3], generator=torch.Generator().manual_seed(1))
    seen = window_mask(a.q.shape[2], a.k.shape[2], band=a.band, **defined(window))
    want = softmax_gradient(operands(a), seen, grad)
    for found, wanted in zip(gradients(a, window, grad), want, strict=True):
        assert_near(found, wanted, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("window", [{"window": (5,), "sinks": 2}, {"window": (3, 3), "grid": (6, 6)}])
def test_half_precision(dtype: torch.dtype, window: dict[str, Any]) -> None:
    a = canonical(36, dtype=dtype, **SMALL)
    assert_near(run(a, window), window_attention(operands(a), **defined(window)), dtype)


@pytest.mark.parametrize("window", [{"window": (5,), "sinks": 2}, {"window": (3, 3), "grid": (6, 6)}])
def test_buffers_are_read_where_they_are_valid_only(window: dict[str, Any]) -> None:
    a = canonical(36, bias="full", sink="heads", **SMALL)
    torch.testing.assert_close(run(in_padded_buffers(a), window), run(a, window), rtol=0, atol=0)


def test_a_query_whose_window_is_hidden_gives_zero() -> None:
    a = canonical(36, bias="full", **SMALL)
    assert a.bias is not None
    a.bias[..., 10:20] = -torch.inf
    found = run(a, {"window": (5,)})
    assert_near(found, window_attention(operands(a), window=5), torch.float32)
    assert (found[:, :, 12:18] == 0).all() and (found[:, :, :12] != 0).any()


@pytest.mark.parametrize("window", [{"window": (5,)}, {"window": (5,), "borders": "shift"}])
def test_keys_outside_of_every_window_are_not_read(window: dict[str, Any]) -> None:
    a = canonical(64, **SMALL)
    v = a.v.clone()
    v[:, :, 48:] = torch.nan
    found = run(replace(a, v=v), window)
    assert found[:, :, :32].isfinite().all() and found[:, :, 48:].isnan().all()


@pytest.mark.parametrize("tile", [32, 64])
def test_tiles_of_every_size_agree(tile: int) -> None:
    for name in ("class token", "dilated neighbourhood", "sinks"):
        a, window = CASES[name]
        assert_near(run(a, window, tile), run(a, window), torch.float32)
