from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rewriter.algebra.sizes import Size
from rewriter.forms import Fidelity, refusal
from rewriter.kernels.softmax.definition import softmax_attention
from rewriter.kernels.softmax.form import Softmax
from rewriter.sites.site import Band
from tests.kernels.operands import CAUSAL, by_hand, canonical, emitter_of, operands, site

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
    found = softmax_attention(operands(a))
    torch.testing.assert_close(found, by_hand(a, lambda i, j: sees(band, i, j)), rtol=1e-12, atol=1e-12)


def test_definition_gives_nan_for_a_row_that_sees_nothing() -> None:
    a = canonical(3, bias="full")
    assert a.bias is not None
    a.bias[:, :, 1] = -torch.inf
    found = softmax_attention(operands(a))
    assert found[:, :, 1].isnan().all() and found[:, :, [0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_definition_computes_half_precision_in_float32(dtype: torch.dtype) -> None:
    a = canonical(5, dtype=dtype)
    found = softmax_attention(operands(a))
    assert found.dtype == torch.float32
    wide = replace(a, q=a.q.float(), k=a.k.float(), v=a.v.float())
    torch.testing.assert_close(found, softmax_attention(operands(wide)))


@pytest.mark.parametrize("band", BANDS.values(), ids=list(BANDS))
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("sink", [None, "heads", "batch", "full"])
def test_definition_caps_scores_and_lets_sinks_take_weight(
    band: Band | None, softcap: float | None, sink: str | None
) -> None:
    a = canonical(3, 8, bias="keys", band=band, dtype=torch.float64, softcap=softcap, sink=sink)
    found = softmax_attention(operands(a))
    want = by_hand(a, lambda i, j: sees(band, i, j))
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12, equal_nan=True)


def test_definition_gives_zero_where_the_sink_is_all_that_is_seen() -> None:
    a = canonical(3, bias="full", sink="heads")
    assert a.bias is not None
    a.bias[:, :, 1] = -torch.inf
    found = softmax_attention(operands(a))
    assert (found[:, :, 1] == 0).all() and (found[:, :, [0, 2]] != 0).all()


@pytest.mark.parametrize("band", BANDS.values(), ids=list(BANDS))
@pytest.mark.parametrize("bias", [None, "keys", "full"])
@pytest.mark.parametrize(("softcap", "sink"), [(0.7, None), (None, "heads"), (0.7, "full"), (None, "batch")])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize(("queries", "keys"), [(1, 4), (17, 20), (6, 6)])
def test_soft_caps_and_sinks_are_lowered(
    band: Band | None,
    bias: str | None,
    softcap: float | None,
    sink: str | None,
    dynamic: bool,
    queries: int,
    keys: int,
) -> None:
    a = canonical(queries, keys, bias=bias, band=band, dynamic=dynamic, softcap=softcap, sink=sink)
    a = replace(a, empty_row="nan" if sink is None else "never")
    found, want = Softmax().emit(emitter_of(a), a), softmax_attention(operands(a))
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5, equal_nan=True)


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
    torch.testing.assert_close(found, softmax_attention(operands(a)), rtol=1e-5, atol=1e-5)


def test_it_is_exact_and_asks_for_softmax() -> None:
    form = Softmax()
    assert form.fidelity(site()) is Fidelity.EXACT
    assert refusal(form, site()) is None
    assert "sigmoid" in (refusal(form, site(normalizer="sigmoid")) or "")


def test_cost_counts_every_score_once_for_keys_and_once_for_values() -> None:
    cost = Softmax().cost(site(queries=10, keys=20))
    assert int(cost.flops) == 2 * 4 * 10 * 20 * (16 + 16)
    assert cost.passes == 1
