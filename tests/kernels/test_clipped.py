from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from rewriter.algebra.sizes import Size
from rewriter.forms import Canonical, Fidelity, refusal
from rewriter.kernels.clipped import lowering
from rewriter.kernels.clipped.form import Clipped
from rewriter.kernels.clipped.lowering import block_length
from rewriter.kernels.softmax.form import Softmax
from rewriter.lower.torch_emitter import TorchEmitter
from rewriter.sites.site import Band, Facts
from tests.kernels.operands import CAUSAL, by_hand, canonical, emitter_of, operands, site

BANDS = {
    "none": None,
    "causal": CAUSAL,
    "causal behind a cache": Band(Size.of(3), None, 0),
    "window of the past": Band(Size.of(0), 4, 0),
    "window on both sides": Band(Size.of(0), 2, 3),
    "one side": Band(Size.of(0), 3, None),
}

# about half of the weights of some 8 to 40 keys are cut off, and with zeta some are too large
FORMS = (Clipped(gamma=-0.05), Clipped(alpha=1.0), Clipped(zeta=1.5), Clipped(zeta=3.0, gamma=-0.1))


def sees(band: Band | None, i: int, j: int) -> bool:
    if band is None:
        return True
    ahead = j - i - int(band.offset)
    return (band.left is None or ahead >= -band.left) and (band.right is None or ahead <= band.right)


def clip(zeta: float, gamma: float, weight: float) -> float:
    stretched = (zeta - gamma) * weight + gamma
    return 0.0 if stretched < 0 else 1.0 if stretched > 1 else stretched


def defined(form: Clipped, a: Canonical) -> torch.Tensor:
    return form.definition(operands(a))


def in_blocks(monkeypatch: pytest.MonkeyPatch, length: int = 4) -> None:
    """Make short sequences worth several blocks, the last of which is shorter."""
    monkeypatch.setattr(lowering, "block_length", lambda planes, queries, keys: min(length, queries))


@pytest.mark.parametrize("band", BANDS.values(), ids=list(BANDS))
@pytest.mark.parametrize(("softcap", "sink"), [(None, None), (0.7, "heads"), (None, "batch")])
def test_definition_is_attention_by_hand(band: Band | None, softcap: float | None, sink: str | None) -> None:
    a = canonical(5, 8, batch=1, bias="full", band=band, dtype=torch.float64, softcap=softcap, sink=sink)
    for zeta, gamma in ((1.0, -0.1), (1.0, -0.9), (1.7, 0.0), (2.5, -0.2)):
        want = by_hand(a, partial(sees, band), partial(clip, zeta, gamma))
        found = defined(Clipped(zeta, gamma), a)
        torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)


def test_alpha_is_gamma_by_the_number_of_keys() -> None:
    a = canonical(5, 8, dtype=torch.float64)
    assert torch.equal(defined(Clipped(alpha=2.0), a), defined(Clipped(gamma=-0.25), a))


def test_weights_are_exactly_zero_and_exactly_one() -> None:
    a = canonical(3, 4, batch=1, heads=1, groups=1)
    a = replace(a, v=torch.eye(4)[None, None], shape={**a.shape, "E": Size.of(4)})
    a.k[:, :, 0] = 50 * a.q[:, :, 0]
    weights = defined(Clipped(1.1, -0.1), a)[0, 0]
    assert weights[0].tolist() == [1, 0, 0, 0]
    found = Clipped(1.1, -0.1).emit(emitter_of(a), a)[0, 0]
    assert torch.equal(found == 0, weights == 0) and found[0, 0] == pytest.approx(1, abs=1e-6)


def test_a_uniform_row_vanishes_where_gamma_is_larger_than_a_weight() -> None:
    a = canonical(3, 8)
    a = replace(a, q=torch.zeros_like(a.q))
    for form in (Clipped(gamma=-0.15), Clipped(alpha=1.2)):
        assert (defined(form, a) == 0).all() and (form.emit(emitter_of(a), a) == 0).all()


LENGTHS = ((1, 1), (1, 4), (6, 6), (17, 20), (33, 33), (5, 3))


@pytest.mark.parametrize("band", BANDS.values(), ids=list(BANDS))
@pytest.mark.parametrize("bias", [None, "keys", "full", "one batch"])
@pytest.mark.parametrize(("softcap", "sink"), [(None, None), (0.7, "full"), (None, "batch")])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("short", [False, True], ids=["one block", "blocks"])
def test_lowering_meets_the_definition(
    monkeypatch: pytest.MonkeyPatch,
    band: Band | None,
    bias: str | None,
    softcap: float | None,
    sink: str | None,
    dynamic: bool,
    short: bool,
) -> None:
    if short:
        in_blocks(monkeypatch)
    for (queries, keys), form in itertools.product(LENGTHS, FORMS):
        a = canonical(queries, keys, bias=bias, band=band, dynamic=dynamic, softcap=softcap, sink=sink)
        a = replace(a, empty_row="nan" if sink is None else "never")
        found = form.emit(emitter_of(a), a)
        assert found.shape == (2, 4, queries, 6)
        assert torch.allclose(found, defined(form, a), rtol=1e-5, atol=1e-5), (queries, keys, form)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("empty_row", ["nan", "zero"])
def test_a_query_that_sees_no_key_gives_zero_and_its_gradient_is_finite(
    monkeypatch: pytest.MonkeyPatch, empty_row: Any, dynamic: bool
) -> None:
    in_blocks(monkeypatch)
    a = replace(canonical(9, bias="full", dynamic=dynamic), empty_row=empty_row)
    assert a.bias is not None
    a.bias[:, 1, 2:6] = -math.inf
    parts = [x.requires_grad_() for x in (a.q, a.k, a.v)]
    for form in FORMS:
        found = form.emit(emitter_of(a), a)
        assert (found[:, 1, 2:6] == 0).all()
        assert torch.allclose(found, defined(form, a), rtol=1e-5, atol=1e-5)
        assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), parts))


def test_gradients_are_those_of_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks(monkeypatch)
    for form, band in itertools.product(FORMS, (None, CAUSAL)):
        a = canonical(9, band=band, bias="full", dtype=torch.float64)
        parts = [x.requires_grad_() for x in (a.q, a.k, a.v)]
        found = torch.autograd.grad(form.emit(emitter_of(a), a).sum(), parts)
        want = torch.autograd.grad(defined(form, a).sum(), parts)
        for got, right in zip(found, want, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    in_blocks(monkeypatch)
    for form, dynamic in itertools.product(FORMS, (False, True)):
        a = canonical(17, band=CAUSAL, dtype=dtype, softcap=0.7, sink="heads", dynamic=dynamic)
        found = form.emit(emitter_of(a), a)
        assert found.dtype == dtype
        error = (found.double() - defined(form, a).double()).abs().max()
        assert error <= 8 * form.zeta * torch.finfo(dtype).eps * a.v.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_half_precision_have_the_digits_of_fused_attention(dtype: torch.dtype) -> None:
    form = Clipped(zeta=1.02, gamma=-0.02)
    a = canonical(17, dtype=dtype)
    a = replace(a, q=a.q * 30)  # scores of some 50, where half precision has steps of 1/32 and 1/4
    error = (form.emit(emitter_of(a), a).double() - defined(form, a).double()).abs().max()
    assert error <= torch.finfo(dtype).eps * a.v.abs().max()


@pytest.mark.parametrize("form", [Clipped(), Clipped(1.0, 0.0), Clipped(alpha=0.0)], ids=str)
@pytest.mark.parametrize("band", BANDS.values(), ids=list(BANDS))
@pytest.mark.parametrize("bias", [None, "keys"])
def test_nothing_stretched_is_the_site(form: Clipped, band: Band | None, bias: str | None) -> None:
    a = replace(canonical(16, band=band, bias=bias), empty_row="nan")
    assert form.fidelity(site()) is Fidelity.EXACT and form.cost(site()).passes == 1
    exact = Softmax().emit(emitter_of(a), a)
    torch.testing.assert_close(form.emit(emitter_of(a), a), exact, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(defined(form, a), exact, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_the_blocked_lowering_tends_to_the_site() -> None:
    a = canonical(33, band=CAUSAL)
    exact = Softmax().emit(emitter_of(a), a)
    errors = [
        float((Clipped(gamma=-g).emit(emitter_of(a), a) - exact).norm()) for g in (1e-2, 1e-3, 1e-4, 1e-9)
    ]
    assert errors[0] > errors[1] > errors[2] > errors[3] and errors[3] < 1e-5


def test_what_it_is_for_a_site() -> None:
    assert Clipped(gamma=-0.01).fidelity(site()) is Fidelity.TRAINING_FREE
    assert Clipped(zeta=1.01).fidelity(site()) is Fidelity.TRAINING_FREE
    assert Clipped(gamma=-0.01, error=0.1).fidelity(site()) is Fidelity.CALIBRATED
    assert Clipped(gamma=-0.01).cost(site()).passes == 2
    for kind in ("attention", "latent-attention", "pooling", "channel-attention"):
        assert refusal(Clipped(gamma=-0.01), site(kind=kind)) is None
    assert "sigmoid" in (refusal(Clipped(), site(normalizer="sigmoid")) or "")
    assert "head-mixing" in (refusal(Clipped(), site(traits=("head-mixing",))) or "")
    assert refusal(Clipped(), site(traits=("softcap", "sink"))) is None


def test_gamma_is_chosen_by_data_or_refused() -> None:
    form = Clipped(error=0.05)
    assert "give data" in (form.why_not(site()) or "") and form.fidelity(site()) is Fidelity.CALIBRATED
    choices = form.choices(site())
    assert [c.gamma for c in choices] == sorted(c.gamma or 0 for c in choices)
    assert all(c.error == 0.05 and c.why_not(site()) is None and not c.choices(site()) for c in choices)
    errors = [0.2, 0.0501, 0.05, 0.01]
    assert form.choose(site(), list(zip(choices, errors, strict=False))) == choices[2]
    assert "0.0501 on the data; expected at most 0.05" in str(form.choose(site(), [(choices[0], 0.0501)]))
    assert Clipped(gamma=-0.1).choices(site()) == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"zeta": 0.9},
        {"zeta": math.inf},
        {"zeta": math.nan},
        {"gamma": 0.1},
        {"gamma": -math.inf},
        {"alpha": -1.0},
        {"error": 0.0},
        {"alpha": 1.0, "gamma": -0.1},
        {"alpha": 1.0, "error": 0.1},
    ],
    ids=str,
)
def test_parameters_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Clipped(**wrong)


def test_it_reads_back_what_it_prints() -> None:
    for form in (Clipped(), *FORMS, Clipped(error=0.05), *Clipped(error=0.05).choices(site())):
        assert Clipped.parse(str(form).partition(":")[2].split(",")) == form


class Counting(TorchEmitter):
    """Counts the scores that are computed, and the most at a time."""

    scores, largest = 0, 0

    def softmax(self, x: torch.Tensor, axis: int) -> torch.Tensor:
        self.scores, self.largest = self.scores + x.numel(), max(self.largest, x.numel())
        return super().softmax(x, axis)


@pytest.mark.parametrize(
    ("band", "share"),
    [(None, 1.0), (CAUSAL, 0.54), (Band(Size.of(0), 63, 0), 0.14), (Band(Size.of(0), 32, 32), 0.14)],
    ids=str,
)
def test_blocks_meet_the_keys_that_their_band_shows(band: Band | None, share: float) -> None:
    a = canonical(1024, batch=1, heads=4, groups=2, band=band)
    e = emitter_of(a, Counting)
    assert isinstance(e, Counting)
    form = Clipped(gamma=-1e-3)
    found = form.emit(e, a)
    assert e.scores <= share * 4 * 1024**2 and e.largest <= 4 * 1024**2 / 16
    torch.testing.assert_close(found, defined(form, a), rtol=1e-4, atol=1e-5)
    assert form.fidelity(site(facts=Facts(band=band))) is Fidelity.TRAINING_FREE


def test_blocks_stay_small() -> None:
    assert block_length(6, 17, 17) == 17
    assert block_length(6, 257, 257) == 65
    assert block_length(6, 4097, 4097) * 4097 * 6 <= 1 << 22
    assert -(-4097 // block_length(1, 4097, 4097)) == 16
    assert block_length(1, 1, 100_000) == 1
