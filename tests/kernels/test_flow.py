from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from rewriter.algebra.sizes import Size
from rewriter.forms import Canonical, Fidelity
from rewriter.kernels.flow.form import Flow
from rewriter.kernels.linear import lowering
from rewriter.kernels.softmax.form import Softmax
from rewriter.sites.site import Band, Facts
from tests.kernels.operands import CAUSAL, canonical, emitter_of, operands, site

FORM = Flow()


def dense(a: Canonical) -> torch.Tensor:
    """Return the flows of every pair of a query and a key, and what becomes of them."""
    share, queries, keys = a.q.shape[1] // a.k.shape[1], a.q.shape[2], a.k.shape[2]
    k, v = (x.repeat_interleave(share, 1) for x in (a.k, a.v))
    flow = a.q.sigmoid() @ k.sigmoid().mT
    incoming, outgoing = flow.sum(3) + 1e-6, flow.sum(2) + 1e-6
    received = (flow / outgoing[:, :, None]).sum(3)
    given = (flow / incoming[..., None]).sum(2).clamp(-1, 1)
    weights = flow / incoming[..., None] * (given.softmax(2) * keys)[:, :, None]
    result: torch.Tensor = weights @ v * torch.sigmoid(received * queries / keys)[..., None]
    return result


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (7, 7), (5, 9), (12, 3)])
def test_definition_is_the_flow_of_all_pairs(queries: int, keys: int) -> None:
    a = canonical(queries, keys, dtype=torch.float64)
    torch.testing.assert_close(FORM.definition(operands(a)), dense(a), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("order", [None, "dense", "factored"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_every_order_meets_the_definition(
    monkeypatch: pytest.MonkeyPatch, dynamic: bool, order: str | None
) -> None:
    if order is not None:
        monkeypatch.setattr(lowering, "order_of", lambda *_: order)
    for queries, keys in itertools.product((1, 8, 33), (1, 9, 33)):
        a = canonical(queries, keys, dynamic=dynamic)
        found, want = FORM.emit(emitter_of(a), a), FORM.definition(operands(a))
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)


def one_by_one(a: Canonical) -> torch.Tensor:
    """Return flows from earlier tokens, every mean taken anew for every token."""
    share, count = a.q.shape[1] // a.k.shape[1], a.q.shape[2]
    q, k, v = a.q.sigmoid(), *(x.repeat_interleave(share, 1) for x in (a.k.sigmoid(), a.v))
    rows = [slice(0, n + 1) for n in range(count)]
    incoming = torch.stack([(q[:, :, n] * k[:, :, rows[n]].mean(2)).sum(2) for n in range(count)], 2) + 1e-6
    outgoing = torch.stack([(k[:, :, n] * q[:, :, rows[n]].mean(2)).sum(2) for n in range(count)], 2) + 1e-6
    result = torch.zeros(*q.shape[:3], v.shape[3], dtype=q.dtype)
    offer = torch.zeros_like(incoming)
    for n in range(count):
        given = (k[:, :, n, None] * q[:, :, rows[n]] / incoming[:, :, rows[n], None]).sum(3).mean(2)
        offer[:, :, n] = given.clamp(-1, 1).exp()
    for n in range(count):
        share_of = torch.stack([offer[:, :, m] / offer[:, :, : m + 1].mean(2) for m in range(n + 1)], 2)
        weights = (q[:, :, n, None] * k[:, :, rows[n]]).sum(3) / incoming[:, :, n, None] * share_of
        received = (q[:, :, n, None] * k[:, :, rows[n]] / outgoing[:, :, rows[n], None]).sum(3).mean(2)
        mean = (weights[..., None] * v[:, :, rows[n]]).mean(2)
        result[:, :, n] = mean * received.sigmoid()[..., None]
    return result


@pytest.mark.parametrize("length", [1, 2, 9])
def test_a_causal_token_knows_of_earlier_ones_only(length: int) -> None:
    a = canonical(length, band=CAUSAL, dtype=torch.float64)
    want = FORM.definition(operands(a))
    torch.testing.assert_close(want, one_by_one(a), rtol=1e-10, atol=1e-10)
    for n in range(1, length):
        cut = replace(a, q=a.q[:, :, :n], k=a.k[:, :, :n], v=a.v[:, :, :n])
        torch.testing.assert_close(FORM.definition(operands(cut)), want[:, :, :n], rtol=1e-12, atol=1e-12)


def test_one_token_has_no_earlier_ones() -> None:
    a = canonical(1, dtype=torch.float64)
    causal = FORM.definition(operands(replace(a, band=CAUSAL)))
    torch.testing.assert_close(causal, FORM.definition(operands(a)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", [None, "dense", "chunked"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_every_causal_order_meets_the_definition(
    monkeypatch: pytest.MonkeyPatch, dynamic: bool, order: str | None
) -> None:
    if order is not None:
        monkeypatch.setattr(lowering, "order_of", lambda *_: order)
    for length in (1, 2, 33, 300):
        a = canonical(length, band=CAUSAL, dynamic=dynamic)
        found, want = FORM.emit(emitter_of(a), a), FORM.definition(operands(a))
        torch.testing.assert_close(found, want, rtol=2e-5, atol=2e-6)


def test_a_mask_that_is_proved_to_be_causal_is_no_bias() -> None:
    a = canonical(9, band=CAUSAL)
    mask = torch.full((9, 9), -torch.inf).triu(1)[None, None]
    held = replace(a, band=None, bias=mask, implied=CAUSAL)
    torch.testing.assert_close(FORM.emit(emitter_of(held), held), FORM.emit(emitter_of(a), a))


def test_half_precision_is_summed_in_single() -> None:
    a = canonical(900, dtype=torch.float16)
    a = replace(a, v=a.v + 60)
    found = FORM.emit(emitter_of(a), a)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), FORM.definition(operands(a)), rtol=4e-3, atol=1e-2)


def test_legality_and_cost() -> None:
    assert FORM.why_not(site()) is None and FORM.fidelity(site()) is Fidelity.TRAINING_FREE
    assert FORM.why_not(site(facts=Facts(band=CAUSAL, only_band=True))) is None
    for facts in (
        Facts(band=CAUSAL),
        Facts(band=Band(Size.of(0), 4, 0), only_band=True),
        Facts(band=Band(Size.of(2), None, 0), only_band=True),
        Facts(key_padding=True, hides_keys=True),
        Facts(bias=True),
    ):
        assert "masked or biased" in (FORM.why_not(site(facts=facts)) or "")
    assert not FORM.rows_apart
    costs = [FORM.cost(site(queries=n, keys=n)).flops for n in (1024, 2048)]
    assert costs[1] == 2 * costs[0]
    assert int(Softmax().cost(site(queries=1024, keys=1024)).flops) == 64 * int(costs[0])
