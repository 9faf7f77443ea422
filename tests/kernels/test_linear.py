from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from rewriter.algebra.sizes import Size
from rewriter.forms import Canonical, Fidelity
from rewriter.kernels.linear import lowering
from rewriter.kernels.linear.definition import FEATURES, efficient_attention
from rewriter.kernels.linear.features import Taylor
from rewriter.kernels.linear.form import FEATURE_MAPS, Linear
from rewriter.kernels.linear.lowering import chunk_length, multiplications, order_of
from rewriter.kernels.softmax.form import Softmax
from rewriter.sites.site import Band, Facts
from tests.kernels.operands import CAUSAL, canonical, emitter_of, operands, site

POSITIVE = ("elu", "relu", "taylor2", "fastmax2")
"""Maps whose weights are never negative: quotients are well conditioned."""


def elu(x: list[float]) -> list[float]:
    return [t + 1 if t > 0 else math.exp(t) for t in x]


def relu(x: list[float]) -> list[float]:
    return [max(t, 0.0) for t in x]


def standardised(x: list[float]) -> list[float]:
    mean = sum(x) / len(x)
    variance = sum((t - mean) ** 2 for t in x) / len(x)
    return [(t - mean) / math.sqrt(variance + 1e-6) for t in x]


def dot(a: list[float], b: list[float]) -> float:
    return sum(s * t for s, t in zip(a, b, strict=True))


def series(score: float, order: int) -> float:
    return sum(score**n / math.factorial(n) for n in range(order + 1))


Weigh = Callable[[list[float], list[float], float], float]

BY_HAND: dict[str, Weigh] = {
    "elu": lambda q, k, scale: dot(elu(q), elu(k)),
    "relu": lambda q, k, scale: dot(relu(q), relu(k)),
    "taylor1": lambda q, k, scale: series(scale * dot(q, k), 1),
    "taylor2": lambda q, k, scale: series(scale * dot(q, k), 2),
    "fastmax1": lambda q, k, scale: series(dot(standardised(q), standardised(k)), 1),
    "fastmax2": lambda q, k, scale: series(dot(standardised(q), standardised(k)), 2),
}
"""The weight of a key before it is normalised, a number at a time."""


def by_hand(a: Canonical, weigh: Weigh, sees: Callable[[int, int], bool]) -> torch.Tensor:
    """Return linear attention as a recurrence over the visible keys, one query after the other."""
    B, H, queries, _ = a.q.shape
    share, keys = H // a.k.shape[1], a.k.shape[2]
    bias = torch.zeros(B, H, queries, keys) if a.bias is None else a.bias.expand(B, H, queries, keys)
    result = torch.zeros(B, H, queries, a.v.shape[3], dtype=torch.float64)
    for b, h, i in itertools.product(range(B), range(H), range(queries)):
        state, total = torch.zeros(a.v.shape[3], dtype=torch.float64), 0.0
        for j in range(keys):
            if sees(i, j):
                weight = weigh(a.q[b, h, i].tolist(), a.k[b, h // share, j].tolist(), a.scale)
                weight *= math.exp(bias[b, h, i, j])
                state, total = state + weight * a.v[b, h // share, j], total + weight
        if total:
            result[b, h, i] = state / total
    return result


def defined(feature_map: str, a: Canonical) -> torch.Tensor:
    return Linear(feature_map).definition(operands(a))


def emitted(feature_map: str, a: Canonical) -> torch.Tensor:
    found: torch.Tensor = Linear(feature_map).emit(emitter_of(a), a)
    return found


@pytest.mark.parametrize("feature_map", BY_HAND)
@pytest.mark.parametrize("band", [None, CAUSAL], ids=["all", "causal"])
def test_definition_is_a_recurrence_by_hand(feature_map: str, band: Band | None) -> None:
    a = canonical(7, bias="keys", band=band, dtype=torch.float64)
    want = by_hand(a, BY_HAND[feature_map], lambda i, j: band is None or j <= i)
    torch.testing.assert_close(defined(feature_map, a), want, rtol=1e-9, atol=1e-9)


def test_softmax_features_by_hand() -> None:
    a = canonical(6, 5, bias="keys", groups=4, dtype=torch.float64)
    assert a.bias is not None
    found = efficient_attention(operands(a))
    for b, h, i in itertools.product(range(2), range(4), range(6)):
        query = [math.exp(t) for t in a.q[b, h, i].tolist()]
        want = torch.zeros(6, dtype=torch.float64)
        for d, share in enumerate(query):
            keys = [math.exp(a.k[b, h, j, d] + a.bias[b, 0, 0, j]) for j in range(5)]
            mean = sum(w * a.v[b, h, j] for j, w in enumerate(keys)) / sum(keys)
            want += share / sum(query) * mean
        torch.testing.assert_close(found[b, h, i], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
def test_products_of_features_are_the_series(order: int) -> None:
    q, k = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features = FEATURES[f"taylor{order}"]
    want = torch.tensor([[series(float(a @ b), order) for b in k] for a in q], dtype=torch.float64)
    torch.testing.assert_close(features(q) @ features(k).T, want)


def ways(monkeypatch: pytest.MonkeyPatch, order: str, chunk: int = 8) -> None:
    """Make short sequences worth sums and chunks, or everything dense."""
    named = {"dense": "dense", "sums": None}[order]
    monkeypatch.setattr(
        lowering, "order_of", lambda _, band: named or ("factored" if band is None else "chunked")
    )
    monkeypatch.setattr(lowering, "chunk_length", lambda *_: chunk)


LENGTHS = (1, 7, 8, 9, 33)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("order", ["dense", "sums"])
@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
def test_every_order_meets_the_definition(
    monkeypatch: pytest.MonkeyPatch, feature_map: str, order: str, dynamic: bool
) -> None:
    ways(monkeypatch, order)
    for length, band, bias in itertools.product(LENGTHS, (None, CAUSAL), (None, "keys")):
        if feature_map == "softmax" and band is not None:
            continue
        a = canonical(length, bias=bias, band=band, dynamic=dynamic, dtype=torch.float64)
        found, want = emitted(feature_map, a), defined(feature_map, a)
        torch.testing.assert_close(found, want, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("feature_map", POSITIVE)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_its_own_order_meets_the_definition(feature_map: str, dynamic: bool) -> None:
    for length, band, bias in itertools.product((1, 31, 300), (None, CAUSAL), (None, "keys")):
        a = canonical(length, bias=bias, band=band, dynamic=dynamic)
        torch.testing.assert_close(emitted(feature_map, a), defined(feature_map, a), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("order", ["dense", "sums"])
@pytest.mark.parametrize(("keys", "offset"), [(17, 5), (17, 2), (12, 0), (20, 0)])
def test_queries_behind_a_cache(monkeypatch: pytest.MonkeyPatch, order: str, keys: int, offset: int) -> None:
    ways(monkeypatch, order, chunk=4)
    for feature_map, bias in itertools.product(POSITIVE, (None, "keys")):
        a = canonical(12, keys, band=Band(Size.of(offset), None, 0), bias=bias, dtype=torch.float64)
        want = by_hand(a, BY_HAND[feature_map], lambda i, j: j <= i + offset)
        torch.testing.assert_close(emitted(feature_map, a), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", ["dense", "sums"])
@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
def test_cross_attention(monkeypatch: pytest.MonkeyPatch, feature_map: str, order: str) -> None:
    ways(monkeypatch, order)
    a = canonical(5, 19, bias="keys", dtype=torch.float64)
    torch.testing.assert_close(emitted(feature_map, a), defined(feature_map, a), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
def test_hidden_keys_contribute_nothing(feature_map: str) -> None:
    a = canonical(9, bias="keys")
    cut = {name: getattr(a, name)[:1, :, 3:] for name in ("k", "v")}
    assert a.bias is not None
    short = replace(a, q=a.q[:1], bias=a.bias[:1, ..., 3:], **cut, shape=a.shape | {"B": Size.of(1)})
    short = replace(short, shape=short.shape | {"J": Size.of(6)})
    hidden = emitted(feature_map, a)[:1]
    torch.testing.assert_close(hidden, defined(feature_map, short), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("low", [-math.inf, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("order", ["dense", "sums"])
@pytest.mark.parametrize("feature_map", POSITIVE)
def test_a_query_that_sees_no_key_gives_zero(
    monkeypatch: pytest.MonkeyPatch, feature_map: str, order: str, low: float
) -> None:
    ways(monkeypatch, order)
    a = canonical(10, bias="keys", band=CAUSAL)
    assert a.bias is not None
    a.bias[0], a.bias[1] = low, 0.0
    found = emitted(feature_map, a)
    assert (found[0] == 0).all() and found.isfinite().all() and (found[1] != 0).any()
    assert (defined(feature_map, a)[0] == 0).all()


def test_softmax_features_of_hidden_keys_give_zero() -> None:
    a = canonical(4, bias="keys")
    assert a.bias is not None
    a.bias[0] = -math.inf
    for found in (emitted("softmax", a), defined("softmax", a)):
        assert (found[0] == 0).all() and found.isfinite().all()


def test_relu_features_that_are_all_zero_give_zero() -> None:
    a = canonical(5)
    a = replace(a, q=-a.q.abs())
    for found in (emitted("relu", a), defined("relu", a)):
        assert (found == 0).all()


def test_a_mask_that_holds_the_band_is_read_at_the_last_query(monkeypatch: pytest.MonkeyPatch) -> None:
    ways(monkeypatch, "sums")
    a, plain = canonical(11, bias="keys", dtype=torch.float64), CAUSAL
    assert a.bias is not None
    hidden = torch.full((11, 11), -math.inf, dtype=torch.float64).triu(1)
    whole = replace(a, bias=a.bias + hidden, implied=plain)
    want = by_hand(replace(a, band=plain), BY_HAND["elu"], lambda i, j: j <= i)
    torch.testing.assert_close(emitted("elu", whole), want)
    torch.testing.assert_close(Linear("elu").definition(operands(Linear("elu").adapt(whole))), want)


def test_a_bias_of_each_head_weighs_shared_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    ways(monkeypatch, "sums")
    for feature_map in ("elu", "softmax"):
        a = canonical(6, dtype=torch.float64)
        a = replace(a, bias=torch.randn(2, 4, 1, 6, dtype=torch.float64))
        torch.testing.assert_close(emitted(feature_map, a), defined(feature_map, a))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("band", [None, CAUSAL], ids=["all", "causal"])
def test_half_precision_is_summed_in_single(dtype: torch.dtype, band: Band | None) -> None:
    a = canonical(700, band=band, dtype=dtype)
    a = replace(a, k=a.k + 40, q=a.q + 40)  # products of sums leave the range of float16
    found = emitted("elu", a)
    assert found.dtype == dtype
    torch.testing.assert_close(found, defined("elu", a).to(dtype), rtol=2e-2, atol=2e-2)


def test_operands_may_be_strided() -> None:
    a = canonical(9, band=CAUSAL)
    turned = {n: getattr(a, n).transpose(1, 2).contiguous().transpose(1, 2) for n in "qkv"}
    torch.testing.assert_close(emitted("elu", replace(a, **turned)), emitted("elu", a))


def sizes(length: int | str, width: int = 64, features: int | None = None) -> dict[str, Size]:
    n = Size.symbol(length) if isinstance(length, str) else Size.of(length)
    plain = dict(zip("BHGDEF", map(Size.of, (1, 6, 6, width, width, features or width)), strict=True))
    return {**plain, "I": n, "J": n}


def test_the_order_is_chosen_by_length() -> None:
    assert order_of(sizes(64), None) == "dense" and order_of(sizes(65), None) == "factored"
    assert order_of(sizes("n"), None) == "factored" and order_of(sizes("n"), CAUSAL) == "chunked"
    assert order_of(sizes(4096), CAUSAL) == "chunked" and order_of(sizes(16), CAUSAL) == "dense"
    many = int(Taylor(2).size(Size.of(64)))
    assert many == 1 + 64 + 64 * 65 // 2
    assert order_of(sizes(2048, features=many), None) == "dense"
    assert order_of(sizes(4096, features=many), None) == "factored"


def test_chunks_grow_with_the_length() -> None:
    lengths = [chunk_length(n, 64, 64) for n in (256, 1024, 4096, 65536)]
    assert lengths == sorted(lengths) and lengths[0] < lengths[-1]
    short, long = (int(multiplications(sizes(n), "chunked")) for n in (4096, 65536))
    assert long < 3 * 16 * short


def test_cost_grows_with_the_length_only() -> None:
    short, long = (
        Linear().cost(site(queries=n, keys=n, facts=Facts(dense=True))).flops.known() for n in (1024, 2048)
    )
    assert short and long == 2 * short
    dense = Softmax().cost(site(queries=1024, keys=1024)).flops.known()
    assert dense and dense / short == 1024 / 16


def test_legality() -> None:
    form = Linear()
    assert form.why_not(site()) is None and form.fidelity(site()) is Fidelity.TRAINING_FREE
    causal = site(facts=Facts(band=CAUSAL, only_band=True))
    assert form.why_not(causal) is None
    assert "sees all of them" in (Linear("softmax").why_not(causal) or "")
    window = site(facts=Facts(band=Band(Size.of(0), 4, 0), only_band=True))
    assert "use window" in (form.why_not(window) or "")
    beyond = site(facts=Facts(band=Band(Size.of(3), None, 0), only_band=True))
    assert "not proved to lie among" in (form.why_not(beyond) or "")
    open_ended = site(facts=Facts(band=Band(Size.of(0), None, 2), only_band=True))
    assert "window of keys" in (form.why_not(open_ended) or "")


@pytest.mark.parametrize("feature_map", ["", "exp", "Elu", "taylor3"])
def test_unknown_maps_are_refused(feature_map: str) -> None:
    with pytest.raises(ValueError, match="expected one of elu, relu, taylor1"):
        Linear(feature_map)
