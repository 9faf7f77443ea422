from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from rewriter.verify.noise import epsilon, floor, judge_site, perturbed


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_every_number_moves_to_a_neighbour(dtype: type) -> None:
    x: np.ndarray = np.random.default_rng(0).standard_normal((7, 33)).astype(dtype)
    moved = perturbed(x, np.random.default_rng(1))
    assert moved.dtype == x.dtype and moved.shape == x.shape
    step = np.abs(moved.astype(np.float64) / x.astype(np.float64) - 1)
    assert (step > 0).all()
    assert (step <= 1.01 * epsilon(x.dtype)).all()
    signs = np.sign(moved.astype(np.float64) - x.astype(np.float64))
    assert (signs > 0).any() and (signs < 0).any()


def test_what_has_no_neighbour_stays() -> None:
    top = np.finfo(np.float32).max
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, top, -top], np.float32)
    np.testing.assert_array_equal(perturbed(x, np.random.default_rng(0)), x)
    ids = np.arange(9)
    assert perturbed(ids, np.random.default_rng(0)) is ids


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("keys", [1, 7, 1000])
def test_another_order_of_the_same_sums_passes(keys: int, scale: float, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((33, keys)) * scale).astype(dtype)
    v = rng.standard_normal((keys, 5)).astype(dtype)
    exact = softmax(x.astype(np.float64)) @ v.astype(np.float64)
    flipped = softmax(x[:, ::-1]) @ v[::-1]
    verdict = judge_site(exact, softmax(x) @ v, flipped, dtype)
    assert verdict.ok, verdict
    wrong = softmax(x * np.asarray(1.3, dtype)) @ v
    assert keys == 1 or not judge_site(exact, softmax(x) @ v, wrong, dtype).ok


def test_ties_are_judged_by_the_floor() -> None:
    exact = np.full((3, 4), 0.5)
    old = exact.astype(np.float32)
    assert judge_site(exact, old, np.nextafter(old, 1), "float32").ok
    assert not judge_site(exact, old, old + np.float32(1e-5), "float32").ok
    assert floor(exact, "bfloat16") == pytest.approx(2 * 2**-7 * 0.5)


@pytest.mark.parametrize("new", [[0.0, 1.0], [np.nan, np.nan], [np.inf, 1.0]])
def test_an_empty_row_must_stay_what_it_was(new: list[float]) -> None:
    exact = np.array([np.nan, 1.0])
    assert judge_site(exact, exact.astype(np.float32), exact.astype(np.float32), "float32").ok
    assert not judge_site(exact, exact.astype(np.float32), np.array(new, np.float32), "float32").ok
