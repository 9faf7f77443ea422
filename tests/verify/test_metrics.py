from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from rewriter.verify import distance as pooling
from rewriter.verify import metrics
from rewriter.verify.distance import Tally, distance

X = np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 12.0]], np.float32)


@pytest.mark.parametrize(
    ("function", "y", "expected"),
    [
        (metrics.max_abs, X + 0.5, 0.5),
        (metrics.max_relative, X + 0.5, 0.5 / 12),
        (metrics.relative, X * 1.1, 0.1),
        (metrics.sqnr, X * 1.1, 20.0),
        (metrics.sqnr, X, math.inf),
        (metrics.cosine, X * 7, 1.0),
        (metrics.cosine, -X, -1.0),
        (metrics.kl_divergence, X + 5, 0.0),
        (metrics.top1, X[:, ::-1], 0.5),
        (metrics.top1, X * [[1.0], [-1.0]], 0.5),
        (metrics.agreement, np.where(X == 12, 0, X), 5 / 6),
    ],
)
def test_definitions(function: object, y: np.ndarray, expected: float) -> None:
    assert function(X, y) == pytest.approx(expected, rel=1e-5, abs=1e-12)  # type: ignore[operator]


def test_kl_is_that_of_the_softmax() -> None:
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    expected = float((p * np.log(p / q)).sum())
    assert metrics.kl_divergence(np.log(p) + 3, np.log(q) - 8) == pytest.approx(expected)


def test_top1_accepts_any_of_the_tied() -> None:
    tied = np.array([[2.0, 2.0, 1.0]])
    assert metrics.top1(tied, np.array([[0.0, 1.0, 0.0]])) == 1.0
    assert metrics.top1(tied, np.array([[0.0, 0.0, 1.0]])) == 0.0


@pytest.mark.parametrize(
    ("x", "y", "count"),
    [
        ([np.nan, 1.0, np.inf], [np.nan, 2.0, np.inf], 0),
        ([np.nan, 1.0], [0.0, np.nan], 2),
        ([np.inf, -np.inf], [-np.inf, -np.inf], 1),
        ([], [], 0),
    ],
)
def test_patterns(x: list[float], y: list[float], count: int) -> None:
    assert metrics.pattern_mismatches(np.array(x), np.array(y)) == count


def test_a_pattern_mismatch_does_not_hide_the_other_errors() -> None:
    found = distance(np.array([np.nan, 1.0, 2.0]), np.array([0.0, 1.0, 5.0]))
    assert (found.pattern, found.max_abs) == (1, 3.0)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (5, 1)])
def test_degenerate_shapes(shape: tuple[int, ...]) -> None:
    found = distance(np.zeros(shape), np.zeros(shape))
    assert (found.max_abs, found.cos, found.top1, found.kl, found.pattern) == (0.0, 1.0, 1.0, 0.0, 0)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_every_floating_dtype(dtype: type) -> None:
    assert metrics.is_floating(np.dtype(dtype))
    assert distance(X.astype(dtype), X.astype(dtype)).max_abs == 0.0
    assert not metrics.is_floating(np.dtype(np.int64))


def test_a_tally_is_the_distance_of_the_concatenation(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    pairs = [(x := rng.standard_normal((n, 5)), x + rng.standard_normal((n, 5)) * 0.1) for n in (1, 7, 33)]
    whole = distance(*(np.concatenate(part) for part in zip(*pairs, strict=True)))
    monkeypatch.setattr(pooling, "BLOCK", 12)  # two rows at a time
    tally = Tally()
    for x, y in pairs:
        tally.add(x, y)
    pooled = tally.distance()
    for name in ("max_abs", "max_rel", "rel", "sqnr", "cos", "kl", "top1", "pattern", "elements"):
        assert getattr(pooled, name) == pytest.approx(getattr(whole, name)), name
    assert pooled.p50 >= whole.p50
