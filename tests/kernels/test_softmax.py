from __future__ import annotations

import pytest
import torch

from rewriter.algebra.sizes import Size
from rewriter.forms import Fidelity
from rewriter.kernels.softmax.definition import softmax_attention
from rewriter.kernels.softmax.form import Softmax
from rewriter.sites.site import Band
from tests.kernels.operands import CAUSAL, by_hand, canonical, emitter_of, site

BANDS = {
    "none": None,
    "causal": CAUSAL,
    "causal behind a cache": Band(Size.of(3), None, 0),
    "window of the past": Band(Size.of(0), 4, 0),
    "window on both sides": Band(Size.of(0), 2, 3),
}


def sees(band: Band | None, i: int, j: int) -> bool:
    if band is None:
        return True
    ahead = j - i - int(band.offset)
    return (band.left is None or ahead >= -band.left) and (band.right is None or ahead <= band.right)


@pytest.mark.parametrize("band", BANDS.values(), ids=list(BANDS))
@pytest.mark.parametrize("bias", [None, "full"])
def test_definition_is_attention_by_hand(band: Band | None, bias: str | None) -> None:
    a = canonical(5, 8, batch=1, bias=bias, band=band, dtype=torch.float64)
    found = softmax_attention(a.q, a.k, a.v, a.bias, a.scale, band)
    torch.testing.assert_close(found, by_hand(a, lambda i, j: sees(band, i, j)), rtol=1e-12, atol=1e-12)


def test_definition_gives_nan_for_a_row_that_sees_nothing() -> None:
    a = canonical(3, bias="full")
    assert a.bias is not None
    a.bias[:, :, 1] = -torch.inf
    found = softmax_attention(a.q, a.k, a.v, a.bias, a.scale)
    assert found[:, :, 1].isnan().all() and found[:, :, [0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_definition_computes_half_precision_in_float32(dtype: torch.dtype) -> None:
    a = canonical(5, dtype=dtype)
    found = softmax_attention(a.q, a.k, a.v, None, a.scale)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, softmax_attention(a.q.float(), a.k.float(), a.v.float(), None, a.scale))


@pytest.mark.parametrize("band", BANDS.values(), ids=list(BANDS))
@pytest.mark.parametrize("bias", [None, "keys", "full", "one batch"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize(("queries", "keys"), [(1, 4), (17, 20), (6, 6)])
def test_lowering_meets_the_definition(
    band: Band | None, bias: str | None, dynamic: bool, queries: int, keys: int
) -> None:
    a = canonical(queries, keys, bias=bias, band=band, dynamic=dynamic)
    if bias == "keys":
        assert a.bias is not None
        a.bias[a.bias == -torch.inf] = -1e4
    found = Softmax().emit(emitter_of(a), a)
    torch.testing.assert_close(
        found, softmax_attention(a.q, a.k, a.v, a.bias, a.scale, band), rtol=1e-5, atol=1e-5
    )


def test_it_is_exact_and_asks_for_softmax() -> None:
    form = Softmax()
    assert form.fidelity(site()) is Fidelity.EXACT
    assert form.why_not(site()) is None
    assert "sigmoid" in (form.why_not(site(normalizer="sigmoid")) or "")
    assert "gate" in (form.why_not(site(kind="gate")) or "")


def test_cost_counts_every_score_once_for_keys_and_once_for_values() -> None:
    cost = Softmax().cost(site(queries=10, keys=20))
    assert int(cost.flops) == 2 * 4 * 10 * 20 * (16 + 16)
    assert cost.passes == 1
