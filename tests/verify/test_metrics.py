from __future__ import annotations

import json
import math
from collections.abc import Callable

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


def naive(name: str, x: np.ndarray, y: np.ndarray) -> float:
    """Return a measure element by element, row by row, from its definition."""
    pairs = [(float(a), float(b)) for a, b in zip(x.ravel(), y.ravel(), strict=True)]
    rows = [(list(map(float, a)), list(map(float, b))) for a, b in zip(x, y, strict=True)]
    match name:
        case "elementwise_relative":
            return max(0.0 if a == b else abs(a - b) / abs(a) if a else math.inf for a, b in pairs)
        case "allclose_tolerance":
            return max(abs(a - b) / (1 + abs(a)) for a, b in pairs)
        case "soft_iou":
            clipped = [(max(a, 0.0), max(b, 0.0)) for a, b in pairs]
            return sum(map(min, clipped)) / sum(map(max, clipped))
        case "kl_divergence":
            found = []
            for a, b in rows:
                p, q = [math.exp(v) for v in a], [math.exp(v) for v in b]
                p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
                found.append(sum(u * math.log(u / v) for u, v in zip(p, q, strict=True)))
            return sum(found) / len(found)
        case "sqnr":
            return 10 * math.log10(sum(a * a for a, _ in pairs) / sum((a - b) ** 2 for a, b in pairs))
        case "topk":
            hits = [
                set(sorted(range(len(a)), key=a.__getitem__)[-3:])
                & set(sorted(range(len(b)), key=b.__getitem__)[-3:])
                for a, b in rows
            ]
            return sum(map(len, hits)) / (3 * len(hits))
    raise KeyError(name)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "name", ["elementwise_relative", "allclose_tolerance", "soft_iou", "kl_divergence", "sqnr", "topk"]
)
def test_measures_are_their_definitions(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((5, 7))
    y = x + 0.3 * rng.standard_normal(x.shape)
    function = getattr(metrics, name)
    found = function(x, y, 3) if name == "topk" else function(x, y)
    assert found == pytest.approx(naive(name, x, y), rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_the_least_tolerances_are_those_of_allclose(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(50)
    y = x + 1e-3 * rng.standard_normal(50)
    least: dict[str, Callable[[float], tuple[float, float]]] = {
        "max_abs": lambda t: (0.0, t),
        "elementwise_relative": lambda t: (t, 0.0),
        "allclose_tolerance": lambda t: (t, t),
    }
    for name, tolerances in least.items():
        found = getattr(metrics, name)(x, y)
        assert np.allclose(y, x, *tolerances(found * (1 + 1e-9)))
        assert not np.allclose(y, x, *tolerances(found * (1 - 1e-9)))


def test_quantiles_are_errors_that_occur() -> None:
    error = np.arange(1000.0)
    assert metrics.quantiles(np.zeros(1000), error) == (499.0, 989.0, 998.0)
    assert metrics.relative_quantiles(np.ones(10), 1 + np.arange(10.0), (0.5, 1.0)) == (4.0, 9.0)
    assert metrics.relative_quantiles(np.array([0.0, 0.0, 1.0]), np.array([0.0, 2.0, 1.0])) == (
        0.0,
        math.inf,
        math.inf,
    )
    assert metrics.quantiles(np.zeros(0), np.zeros(0)) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("x", "y", "k", "share"),
    [
        ([[1, 2, 3, 4]], [[4, 3, 2, 1]], 2, 0.0),
        ([[1, 2, 3, 4]], [[1, 2, 4, 3]], 2, 1.0),
        ([[1, 2, 3, 4]], [[4, 3, 2, 1]], 4, 1.0),
        ([[1, 2]], [[2, 1]], 5, 1.0),
        ([[2, 2, 2, 1]], [[0, 1, 2, 3]], 2, 0.5),
        ([[1, 2, 3]], [[1, math.nan, 3]], 2, 0.0),
        ([[1, math.nan, 3]], [[1, 2, 3]], 2, 0.0),
        ([[1, math.nan, 3], [1, 2, 3]], [[7, math.nan, 3], [1, 2, 3]], 1, 1.0),
        ([[1, math.nan]], [[1, math.nan]], 1, 1.0),
        ([[1, -math.inf, 3]], [[1, -math.inf, 0]], 1, 0.0),
        ([[1.0]], [[3.0]], 1, 1.0),
    ],
)
def test_topk(x: list[list[float]], y: list[list[float]], k: int, share: float) -> None:
    assert metrics.topk(np.array(x, float), np.array(y, float), k) == share


def test_divergence_where_entries_cannot_occur() -> None:
    x, y = np.array([[1.0, -np.inf, 2.0]]), np.array([[2.0, -np.inf, 1.0]])
    without = metrics.kl_divergence(x[:, [0, 2]], y[:, [0, 2]])
    assert without > 0.1 and metrics.kl_divergence(x, y) == pytest.approx(without, rel=1e-12)
    nothing = np.full((1, 3), -np.inf)
    assert metrics.kl_divergence(nothing, nothing) == 0.0
    assert metrics.kl_divergence(np.array([[1.0, np.inf]]), np.array([[2.0, np.inf]])) == 0.0


def test_soft_iou_of_sets_is_that_of_the_sets() -> None:
    x, y = np.array([1, 1, 0, 0, 1]), np.array([1, 0, 1, 0, 1])
    assert metrics.soft_iou(x, y) == 2 / 4
    assert (
        metrics.soft_iou(x, x) == 1.0
        and metrics.soft_iou(x, 0 * x) == 0.0
        and metrics.soft_iou(-x, -x) == 1.0
    )


@pytest.mark.parametrize(
    ("x", "y", "index"),
    [
        ([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.5], [3.0, 9.0]], (1, 1)),
        ([[1.0, 2.0], [3.0, 4.0]], [[9.0, np.nan], [np.inf, 4.0]], (0, 1)),
        ([[np.nan, np.inf]], [[np.nan, np.inf]], None),
        ([[np.nan, 1.0]], [[np.nan, 1.5]], (0, 1)),
        ([[1, 2]], [[1, 3]], (0, 1)),
        ([[True, False]], [[False, False]], (0, 0)),
        ([], [], None),
        (3.0, 4.0, ()),
    ],
)
def test_the_worst_element(x: object, y: object, index: tuple[int, ...] | None) -> None:
    a, b = np.array(x), np.array(y)
    worst = metrics.worst_element(a, b)
    assert (None if worst is None else worst.index) == index
    if worst is not None:
        assert worst.original == a[worst.index]


def test_a_tally_comes_back_and_merges_in_any_order_of_the_blocks() -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.standard_normal((n, 5)), rng.standard_normal((n, 5))) for n in (1, 4, 2)]
    whole, merged = Tally(), Tally()
    for x, y in parts:
        whole.add(x, y)
        one = Tally()
        one.add(x, y)
        merged.merge(Tally.restored(json.loads(json.dumps(one.state()))))
    assert merged == whole
    for wrong in ([], [0] * 19, [None] * 19, ["a"] * 19, whole.state()[:-1], [*whole.state()[:-1], [0.0]]):
        with pytest.raises((TypeError, ValueError)):
            Tally.restored(wrong)
