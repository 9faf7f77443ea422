"""Linear attention with learned features."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rewriter.algebra.sizes import Size
from rewriter.forms import Canonical, Fidelity
from rewriter.kernels.linear import lowering
from rewriter.kernels.linear.form import Linear
from rewriter.sites.site import Facts
from tests.kernels.operands import CAUSAL, canonical, emitter_of, operands, site

FEATURES = 3


def arrays(heads: int = 4, groups: int = 2, width: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = {"q": (heads, width, FEATURES), "k": (groups, width, FEATURES), "k_bias": (groups, FEATURES)}
    return {name: rng.normal(size=size).astype(np.float32) for name, size in sizes.items()}


def form(where: Path, **changed: np.ndarray) -> Linear:
    np.savez(where / "features.npz", **{**arrays(), **changed})  # type: ignore[arg-type]
    return Linear("hedgehog", str(where / "features.npz"))


def features(x: torch.Tensor, weight: np.ndarray, bias: np.ndarray) -> list[float]:
    """Return the features of one token, a number at a time."""
    y = [
        float(b) + sum(float(t) * float(w) for t, w in zip(x, column, strict=True))
        for column, b in zip(weight.T, bias, strict=True)
    ]
    raised = [math.exp(t) for t in (*y, *(-t for t in y))]
    return [t / sum(raised) for t in raised]


def by_hand(a: Canonical, causal: bool) -> torch.Tensor:
    learned, zero = arrays(), np.zeros(FEATURES)
    result = torch.zeros(*a.q.shape[:3], a.v.shape[3], dtype=torch.float64)
    for b in range(a.q.shape[0]):
        for h in range(a.q.shape[1]):
            g = h // (a.q.shape[1] // a.k.shape[1])
            keys = [features(x, learned["k"][g], learned["k_bias"][g]) for x in a.k[b, g]]
            for i, x in enumerate(a.q[b, h]):
                own = features(x, learned["q"][h], zero)
                weights = torch.tensor([sum(s * t for s, t in zip(own, k, strict=True)) for k in keys])
                weights = weights[: i + 1] if causal else weights
                result[b, h, i] = (weights / weights.sum()).double() @ a.v[b, g, : len(weights)]
    return result


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 6])
def test_the_definition_by_hand(causal: bool, length: int, tmp_path: Path) -> None:
    a = canonical(length, band=CAUSAL if causal else None, dtype=torch.float64)
    found = form(tmp_path).definition(operands(a))
    torch.testing.assert_close(found, by_hand(a, causal), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", ["dense", "summed"])
@pytest.mark.parametrize("bias", [None, "keys"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_every_order_meets_the_definition(
    order: str, bias: str | None, dynamic: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = form(tmp_path)
    for length, band in ((1, None), (1, CAUSAL), (9, None), (150, CAUSAL)):
        wanted = "dense" if order == "dense" else "factored" if band is None else "chunked"
        monkeypatch.setattr(lowering, "order_of", lambda *_, wanted=wanted: wanted)
        a = canonical(length, band=band, bias=bias, dynamic=dynamic)
        found = made.emit(emitter_of(a), a)
        torch.testing.assert_close(found, made.definition(operands(a)), rtol=1e-4, atol=1e-5)


def test_large_tokens_and_half_precision(tmp_path: Path) -> None:
    made, a = form(tmp_path), canonical(33, band=CAUSAL, dtype=torch.float16)
    a = replace(a, q=a.q * 100, k=a.k * 100)
    found = made.emit(emitter_of(a), a)
    assert found.dtype == torch.float16 and found.isfinite().all()
    torch.testing.assert_close(found.float(), made.definition(operands(a)).float(), rtol=2e-2, atol=2e-2)


WRONG: dict[str, tuple[dict[str, np.ndarray], str]] = {
    "other heads": ({"q": np.ones((3, 8, 3), np.float32)}, "for 3 on 2 with 8"),
    "other widths": ({"k": np.ones((2, 4, 3), np.float32)}, "the same width"),
    "other features": ({"k": np.ones((2, 8, 2), np.float32)}, r"k_bias is \[2, 3\]; expected \[2, 2\]"),
    "not finite": ({"q": np.full((4, 8, 3), np.nan, np.float32)}, "finite"),
    "integers": ({"q": np.ones((4, 8, 3), np.int64)}, "floating-point numbers on 3 axes"),
    "other names": ({"w": np.ones(3, np.float32)}, "expected q, k, q_bias if wanted"),
}


@pytest.mark.parametrize(("changed", "words"), WRONG.values(), ids=list(WRONG))
def test_weights_that_do_not_fit_are_refused(
    changed: dict[str, np.ndarray], words: str, tmp_path: Path
) -> None:
    here = site(kv_heads=Size.of(2), qk_dim=Size.of(8))
    assert form(tmp_path).why_not(here) is None
    reason = form(tmp_path, **changed).why_not(here)
    assert reason is not None
    assert re.search(words, reason), reason


def test_a_file_that_is_not_there_is_refused() -> None:
    made = Linear("hedgehog", "nowhere.npz")
    assert "not a readable .npz" in (made.why_not(site()) or "")
    assert int(made.cost(site()).flops) > 0  # refusals tell costs, too


def test_fidelity_and_cost(tmp_path: Path) -> None:
    made = form(tmp_path)
    assert made.fidelity(site()) is Fidelity.DISTILLED
    costs = [int(made.cost(site(queries=n, keys=n, facts=Facts(band=CAUSAL))).flops) for n in (4096, 8192)]
    assert costs[1] < 3 * costs[0]  # of all pairs it would be 4 times
    assert Linear.parse(str(made).partition(":")[2].split(",")) == made


@pytest.mark.parametrize(
    "wrong",
    [{"feature_map": "hedgehog"}, {"weights": "a.npz"}, {"feature_map": "hedgehog", "weights": "a,b"}],
)
def test_parameters_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Linear(**wrong)
