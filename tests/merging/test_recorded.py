from __future__ import annotations

import numpy as np
import pytest

import rewriter
from rewriter.merging.recorded import expected_to_hold
from rewriter.verify.budget import parse_budget
from rewriter.verify.distance import Tally, distance


def turned(cosine: float, length: float = 1.0) -> dict[str, Tally]:
    """Return what is measured where the output is turned away by an angle of this cosine."""
    tally = Tally()
    x = np.array([[1.0, 0.0]]) * length
    tally.add(x, np.array([[cosine, np.sqrt(1 - cosine**2)]]) * length)
    return {"y": tally}


@pytest.mark.parametrize(("cosine", "holds"), [(0.991, True), (0.989, False)])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_inputs_that_are_alike_leave_no_margin(cosine: float, holds: bool, count: int) -> None:
    assert expected_to_hold(parse_budget("cos>=0.99"), [turned(cosine)] * count) is holds


def test_one_input_may_miss_a_budget_that_all_keep_together() -> None:
    cases = [turned(0.989), *[turned(0.999)] * 3]
    assert expected_to_hold(parse_budget("cos>=0.99"), cases)
    assert not expected_to_hold(parse_budget("cos>=0.99"), cases[:1])


def test_the_margin_is_the_standard_error_of_a_mean() -> None:
    # of equal weights the cosine of the pool is the mean, and the jackknife its usual standard error
    cosines = np.array([0.98, 0.99, 0.995, 0.999])
    bound = cosines.mean() - cosines.std(ddof=1) / 2
    cases = [turned(c) for c in cosines]
    assert expected_to_hold(parse_budget(f"cos>={bound - 1e-6:.9f}"), cases)
    assert not expected_to_hold(parse_budget(f"cos>={bound + 1e-6:.9f}"), cases)


def test_a_bound_from_above_has_its_margin_above() -> None:
    g = np.random.default_rng(0)
    x = g.normal(size=(4, 5, 8))
    y = x + g.normal(size=x.shape) * np.array([0.1, 0.2, 0.3, 0.4])[:, None, None]
    cases = []
    for a, b in zip(x, y, strict=True):
        cases.append({"y": Tally()})
        cases[-1]["y"].add(a, b)
    pooled = distance(x, y).rel
    assert expected_to_hold(parse_budget(f"rel<={pooled * 1.5:.9f}"), cases)
    assert not expected_to_hold(parse_budget(f"rel<={pooled * 1.01:.9f}"), cases)


def test_equal_outputs_keep_every_budget() -> None:
    cases = [turned(1.0), turned(1.0, 5.0)]
    assert expected_to_hold(parse_budget("cos>=1"), cases)
    assert expected_to_hold(parse_budget("sqnr>=100dB"), cases)


def test_an_output_that_is_not_there_is_refused() -> None:
    with pytest.raises(rewriter.errors.InputError, match="no floating output"):
        expected_to_hold(parse_budget("cos@z>=0.9"), [turned(1.0)])
