from __future__ import annotations

from math import comb

import numpy as np
import pytest

from rewriter.verify.intervals import median_interval


@pytest.mark.parametrize("count", range(1, 40))
@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
def test_is_the_narrowest_pair_that_is_confident_enough(count: int, confidence: float) -> None:
    def covers(k: int) -> float:
        return float(sum(comb(count, j) for j in range(k, count + 1 - k)) / 2**count)

    found = median_interval([float(x) for x in range(1, count + 1)], confidence)
    k = int(found.low)
    assert found.high == count + 1 - k
    assert found.confidence == pytest.approx(covers(k), abs=1e-12)
    assert k == 1 or found.confidence >= confidence
    narrower = k + 1 <= count - k
    assert not narrower or covers(k + 1) < confidence


def test_holds_the_true_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    draws = rng.lognormal(sigma=2.0, size=(4000, 15))  # skewed: nothing is assumed of the distribution
    intervals = [median_interval(list(row)) for row in draws]
    held = np.mean([i.low <= 1.0 <= i.high for i in intervals])
    assert held == pytest.approx(intervals[0].confidence, abs=0.01)


def test_order_of_the_values_does_not_matter_and_an_outlier_does_not_move_it() -> None:
    plain = [float(x) for x in range(15)]
    wild = [*plain[:-1], 1e9]
    assert median_interval(plain[::-1]) == median_interval(plain)
    assert median_interval(wild) == median_interval(plain)


def test_few_values_say_that_they_are_few() -> None:
    assert median_interval([2.0]).confidence == 0.0
    found = median_interval([3.0, 1.0, 2.0])
    assert (found.low, found.high, found.confidence) == (1.0, 3.0, 0.75)


def test_excludes() -> None:
    found = median_interval([1.1] * 9)
    assert found.excludes(1.0) and not found.excludes(1.1)
