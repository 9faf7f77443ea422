from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewriter.algebra.sizes import Size
from rewriter.forms import Canonical, Fidelity, refusal
from rewriter.kernels.gated.form import Gated
from rewriter.kernels.softmax.form import Softmax
from rewriter.sites.site import Band, Facts
from tests.kernels.operands import CAUSAL, by_hand, canonical, emitter_of, operands, site

BANDS = {"none": None, "causal": CAUSAL, "window on both sides": Band(Size.of(0), 2, 3)}


def saved(
    where: Path, seed: int = 0, heads: int = 4, features: int = 8
) -> tuple[str, np.ndarray, np.ndarray]:
    """Return a file of weights and what is in it; the last head is open, the one before it closed."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(heads, features)).astype(np.float32)
    bias = np.array([*rng.normal(size=heads - 2), -np.inf, np.inf], np.float32)
    np.savez(where / "gate.npz", weight=weight, bias=bias)
    return str(where / "gate.npz"), weight, bias


def defined(form: Gated, a: Canonical) -> torch.Tensor:
    return form.definition(operands(a))


def opening(weights: np.ndarray, bias: float, query: torch.Tensor) -> float:
    level = bias + sum(float(w) * float(x) for w, x in zip(weights, query, strict=True))
    return 0.0 if level < -700 else 1 / (1 + math.exp(-level))


@pytest.mark.parametrize("band", BANDS.values(), ids=list(BANDS))
def test_definition_is_attention_by_hand_times_a_gate(tmp_path: Path, band: Band | None) -> None:
    a = canonical(5, 8, batch=1, bias="full", band=band, dtype=torch.float64)
    path, weight, bias = saved(tmp_path)
    found = defined(Gated(weights=path), a)

    def sees(i: int, j: int) -> bool:
        ahead = j - i
        return band is None or ((band.left is None or ahead >= -band.left) and ahead <= (band.right or 0))

    plain = by_hand(a, sees)
    for h in range(4):
        for i in range(5):
            want = plain[0, h, i] * opening(weight[h], float(bias[h]), a.q[0, h, i])
            torch.testing.assert_close(found[0, h, i], want, rtol=1e-12, atol=1e-12)
    assert (found[:, 2] == 0).all()


@pytest.mark.parametrize("band", BANDS.values(), ids=list(BANDS))
@pytest.mark.parametrize("bias", [None, "keys", "full", "one batch"])
@pytest.mark.parametrize(("softcap", "sink"), [(None, None), (0.7, "full"), (None, "batch")])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_lowering_meets_the_definition(
    tmp_path: Path,
    band: Band | None,
    bias: str | None,
    softcap: float | None,
    sink: str | None,
    dynamic: bool,
) -> None:
    path, _, _ = saved(tmp_path)
    for queries, keys in ((1, 1), (1, 4), (6, 6), (17, 20)):
        a = canonical(queries, keys, bias=bias, band=band, dynamic=dynamic, softcap=softcap, sink=sink)
        a = replace(a, empty_row="nan" if sink is None else "never")
        for form in (Gated(weights=path), Gated(bias=-0.3)):
            found = form.emit(emitter_of(a), a)
            assert torch.allclose(found, defined(form, a), rtol=1e-5, atol=1e-5), (queries, keys, form)


def test_a_number_scales_what_the_site_gives() -> None:
    a = canonical(6)
    exact = Softmax().emit(emitter_of(a), a)
    torch.testing.assert_close(Gated(bias=0.0).emit(emitter_of(a), a), exact / 2)
    assert (Gated(bias=-math.inf).emit(emitter_of(a), a) == 0).all()


@pytest.mark.parametrize("empty_row", ["nan", "zero"])
def test_a_query_that_sees_no_key_gives_zero(tmp_path: Path, empty_row: Any) -> None:
    a = replace(canonical(9, bias="full"), empty_row=empty_row)
    assert a.bias is not None
    a.bias[:, 1, 2:6] = -math.inf
    for form in (Gated(weights=saved(tmp_path)[0]), Gated(bias=1.0)):
        found = form.emit(emitter_of(a), a)
        assert (found[:, 1, 2:6] == 0).all() and (found[:, 0] != 0).all()
        torch.testing.assert_close(found, defined(form, a), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(tmp_path: Path, dtype: torch.dtype) -> None:
    form = Gated(weights=saved(tmp_path)[0])
    a = canonical(17, band=CAUSAL, dtype=dtype)
    found = form.emit(emitter_of(a), a)
    assert found.dtype == dtype
    error = (found.double() - defined(form, a).double()).abs().max()
    assert error <= 8 * max(torch.finfo(dtype).eps, 2**-24) * a.v.abs().max()


def test_gradients_are_those_of_the_definition(tmp_path: Path) -> None:
    form, a = Gated(weights=saved(tmp_path)[0]), canonical(9, band=CAUSAL, dtype=torch.float64)
    parts = [x.requires_grad_() for x in (a.q, a.k, a.v)]
    found = torch.autograd.grad(form.emit(emitter_of(a), a).sum(), parts)
    want = torch.autograd.grad(defined(form, a).sum(), parts)
    for got, right in zip(found, want, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("band", BANDS.values(), ids=list(BANDS))
@pytest.mark.parametrize("bias", [None, "keys"])
def test_an_open_gate_is_the_site(band: Band | None, bias: str | None) -> None:
    a, form = replace(canonical(16, band=band, bias=bias), empty_row="nan"), Gated()
    assert form.fidelity(site()) is Fidelity.EXACT
    exact = Softmax().emit(emitter_of(a), a)
    torch.testing.assert_close(form.emit(emitter_of(a), a), exact, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(defined(form, a), exact, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("band", [None, CAUSAL], ids=["dense", "causal"])
def test_it_costs_what_softmax_does(band: Band | None) -> None:
    long = site(queries=2048, keys=2048, facts=Facts(dense=band is None, band=band))
    assert Gated(bias=4.0).cost(long) == Softmax().cost(long)


def test_what_it_is_for_a_site(tmp_path: Path) -> None:
    path, _, _ = saved(tmp_path, features=16)
    assert Gated(weights=path).fidelity(site()) is Fidelity.DISTILLED
    assert Gated(bias=4.0).fidelity(site()) is Fidelity.TRAINING_FREE
    for kind in ("attention", "latent-attention", "pooling", "channel-attention"):
        assert refusal(Gated(weights=path), site(kind=kind)) is None
    assert "head-mixing" in (refusal(Gated(), site(traits=("head-mixing",))) or "")
    assert "for 4 with 16" in (refusal(Gated(weights=path), site(heads=Size.of(8))) or "")
    assert "for 4 with 16" in (refusal(Gated(weights=path), site(heads=Size.symbol("h"))) or "")


FILES: dict[str, tuple[dict[str, Any] | bytes | None, str]] = {
    "missing": (None, "not a readable"),
    "text": (b"weight", "not a readable"),
    "a pickle": ({"weight": np.array([{}], object)}, "not a readable"),
    "other names": ({"w": np.ones((4, 16))}, "found w"),
    "empty": ({}, "found nothing"),
    "one axis": ({"weight": np.ones(4)}, r"weight is float64 [4]; expected floating-point numbers on 2 axes"),
    "another bias": ({"weight": np.ones((4, 16)), "bias": np.ones(3)}, "[3]"),
    "integers": ({"weight": np.ones((4, 16), np.int64)}, "floating-point"),
    "not a number": ({"weight": np.full((4, 16), np.nan)}, "finite"),
}


@pytest.mark.parametrize(("content", "words"), FILES.values(), ids=list(FILES))
def test_files_that_are_no_gate_are_refused(
    tmp_path: Path, content: dict[str, Any] | bytes | None, words: str
) -> None:
    path = tmp_path / "gate.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.savez(path, **content)
    assert words in (Gated(weights=str(path)).why_not(site()) or "")


@pytest.mark.parametrize(
    "wrong", [{"bias": math.nan}, {"bias": 1.0, "weights": "a"}, {"weights": "a,b"}], ids=str
)
def test_parameters_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Gated(**wrong)


def test_it_reads_back_what_it_prints() -> None:
    for form in (Gated(), Gated(-2.5), Gated(weights="gates/0.npz")):
        assert Gated.parse(str(form).partition(":")[2].split(",")) == form
