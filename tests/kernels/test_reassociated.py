from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from rewriter.algebra.sizes import Size
from rewriter.forms import Canonical, Fidelity, refusal
from rewriter.kernels.linear import lowering
from rewriter.kernels.linear.form import factored_cost
from rewriter.kernels.reassociated.form import Reassociated
from rewriter.kernels.softmax.form import dense_cost
from rewriter.lower.torch_emitter import TorchEmitter
from rewriter.sites.formula import Formula
from rewriter.sites.site import AttentionSite, Band, Facts
from tests.kernels.operands import CAUSAL, canonical, emitter_of, operands
from tests.kernels.operands import site as plain_site

FORM = Reassociated()


def product(*args: Any, normalizer: str = "none", shift: float = 0.0, **options: Any) -> Canonical:
    a = replace(canonical(*args, **options), shift=shift)
    positive = {"q": a.q.abs(), "k": a.k.abs()} if normalizer == "sum" else {}
    return replace(a, normalizer=normalizer, **positive)


def by_hand(a: Canonical) -> torch.Tensor:
    """Return the products, a number at a time."""
    B, H, queries, _ = a.q.shape
    result = torch.zeros(B, H, queries, a.v.shape[3], dtype=torch.float64)
    last = None if a.band is None else int(a.band.offset)
    for b, h, i in itertools.product(range(B), range(H), range(queries)):
        group, total = h // (H // a.k.shape[1]), 0.0
        for j in range(a.k.shape[2]):
            if last is None or j <= i + last:
                score = sum(s * t for s, t in zip(a.q[b, h, i], a.k[b, group, j], strict=True))
                weight = a.scale * float(score) + a.shift
                result[b, h, i] += weight * a.v[b, group, j]
                total += weight
        if a.normalizer == "sum":
            result[b, h, i] /= total
    return result


NORMALIZERS = ("none", "sum")


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("shift", [0.0, 0.7])
@pytest.mark.parametrize("band", [None, CAUSAL, Band(Size.of(3), None, 0)], ids=["all", "causal", "cache"])
def test_definition_is_products_by_hand(normalizer: str, shift: float, band: Band | None) -> None:
    keys = 9 if band is not None and band is not CAUSAL else 6
    a = product(6, keys, band=band, dtype=torch.float64, normalizer=normalizer, shift=shift)
    torch.testing.assert_close(FORM.definition(operands(a)), by_hand(a), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("order", ["dense", "sums"])
def test_both_orders_are_the_same_function(
    monkeypatch: pytest.MonkeyPatch, order: str, dynamic: bool, normalizer: str
) -> None:
    if order == "dense":
        monkeypatch.setattr(lowering, "order_of", lambda *_: "dense")
    else:
        monkeypatch.setattr(lowering, "order_of", lambda _, band: "chunked" if band else "factored")
        monkeypatch.setattr(lowering, "chunk_length", lambda *_: 8)
    for length, band, shift in itertools.product((1, 7, 8, 9, 33), (None, CAUSAL), (0.0, 0.7)):
        more: dict[str, Any] = {"dtype": torch.float64, "normalizer": normalizer, "shift": shift}
        a = product(length, band=band, dynamic=dynamic, **more)
        torch.testing.assert_close(FORM.emit(emitter_of(a), a), FORM.definition(operands(a)))


class Counting(TorchEmitter):
    """Counts the multiplications of matrix products."""

    multiplications = 0

    def matmul(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        found = super().matmul(a, b)
        self.multiplications += found.numel() * a.shape[-1]
        return found


@pytest.mark.parametrize(
    ("queries", "keys", "band"), [(5, 5, None), (50, 50, None), (3, 900, None), (600, 600, CAUSAL)]
)
def test_what_is_computed_is_what_the_cost_says(queries: int, keys: int, band: Band | None) -> None:
    a = product(queries, keys, band=band)
    e = emitter_of(a, Counting)
    assert isinstance(e, Counting)
    FORM.emit(e, a)
    sizes = {**a.shape, "F": a.shape["D"]}
    best = min(
        int(lowering.multiplications(sizes, way)) for way in ("dense", "chunked" if band else "factored")
    )
    assert e.multiplications <= 1.1 * best  # the last chunk is padded
    assert best <= int(lowering.multiplications(sizes, "dense"))


def site(length: int | str, **changes: Any) -> AttentionSite:
    n = Size.symbol(length) if isinstance(length, str) else length
    fields = {"q": None, "k": None, "v": None, "scale": 1.0, "factors": (), "bias": None, "rest": None}
    shown = {name: changes.pop(name) for name in ("weights", "scores", "values_first") if name in changes}
    formula = Formula(axes=None, **fields, output_index=None, output_shape=(), **shown)  # type: ignore[arg-type]
    linear = {"kind": "linear-attention", "normalizer": "none", "formula": formula}
    return plain_site(**{**linear, "queries": n, "keys": n, "facts": Facts(dense=True), **changes})


def test_it_is_exact_where_it_gains() -> None:
    assert FORM.fidelity(site(400)) is Fidelity.EXACT
    assert refusal(FORM, site(400)) is None and refusal(FORM, site("n")) is None
    assert "least already (dense)" in (refusal(FORM, site(16)) or "")
    assert refusal(FORM, site(15, values_first=True)) is None
    assert "least already (factored)" in (refusal(FORM, site(400, values_first=True)) or "")
    causal = Facts(band=CAUSAL, only_band=True)
    assert refusal(FORM, site(4000, facts=causal)) is None
    assert "least already (dense)" in (refusal(FORM, site(20, facts=causal)) or "")


def test_what_no_sum_can_do_is_refused() -> None:
    assert "softmax" in (refusal(FORM, site(400, normalizer="softmax")) or "")
    assert "is attention" in (refusal(FORM, site(400, kind="attention")) or "")
    for name in ("weights", "scores"):
        assert "cannot be exchanged" in (refusal(FORM, site(400, **{name: object()})) or "")
    window = Facts(band=Band(Size.of(0), 3, 0), only_band=True)
    assert "use window" in (refusal(FORM, site(400, facts=window)) or "")


def test_cost_is_that_of_the_cheaper_order() -> None:
    for length in (8, 400):
        at = site(length)
        dense, factored = dense_cost(at, at.keys).flops, factored_cost(at).flops
        assert int(FORM.cost(at).flops) == min(int(dense), int(factored))


@pytest.mark.parametrize("band", [None, CAUSAL], ids=["all", "causal"])
def test_half_precision_is_summed_in_single(band: Band | None) -> None:
    a = product(900, band=band, dtype=torch.float16)
    a = replace(a, k=a.k + 8, v=a.v + 8, scale=1e-4)  # sums of keys times values leave the range of float16
    found = FORM.emit(emitter_of(a), a)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), FORM.definition(operands(a)), rtol=2e-3, atol=2e-2)
