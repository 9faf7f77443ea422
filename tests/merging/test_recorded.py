from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest

import rewriter
from rewriter.merging.recorded import Recorded, RecordedLosses, expected_to_hold, loss
from rewriter.merging.weave import Merging
from rewriter.program.program import Program
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


@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0])
def test_the_margin_may_be_chosen(margin: float) -> None:
    cosines = np.array([0.98, 0.99, 0.995, 0.999])
    bound = cosines.mean() - margin * cosines.std(ddof=1) / 2
    cases = [turned(c) for c in cosines]
    assert expected_to_hold(parse_budget(f"cos>={bound - 1e-6:.9f}"), cases, margin)
    assert not expected_to_hold(parse_budget(f"cos>={bound + 1e-6:.9f}"), cases, margin)
    assert loss(parse_budget(f"cos>={bound:.12f}"), cases, margin) == pytest.approx(1.0, abs=1e-3)


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


@pytest.mark.parametrize(
    ("budget", "cosine", "wanted"),
    [("cos>=0.99", 0.995, 0.5), ("cos>=0.99", 0.98, 2.0), ("cos>=1", 1.0, 0.0), ("cos>=1", 0.5, np.inf)],
)
def test_a_loss_is_a_share_of_what_is_allowed(budget: str, cosine: float, wanted: float) -> None:
    assert loss(parse_budget(budget), [turned(cosine)]) == pytest.approx(wanted, rel=1e-6)


def test_noise_is_lost_in_proportion_to_the_signal() -> None:
    tally = Tally()
    tally.add(np.array([[10.0, 0.0]]), np.array([[10.0, 1.0]]))
    assert loss(parse_budget("sqnr>=20dB"), [{"y": tally}]) == pytest.approx(1.0)
    assert loss(parse_budget("sqnr>=40dB"), [{"y": tally}]) == pytest.approx(10.0)
    assert loss(parse_budget("rel<=0.2"), [{"y": tally}]) == pytest.approx(0.5)


def test_without_a_margin_what_others_lose_does_not_matter() -> None:
    # without the first input there is no noise: no standard error of a ratio in dB is known
    cases = [turned(0.99999), turned(1.0)]
    budget = parse_budget("sqnr>=20dB")
    assert expected_to_hold(budget, cases, 0.0) and loss(budget, cases, 0.0) <= 1
    assert not expected_to_hold(budget, cases, 1.0)


def test_bounds_that_allow_everything_are_no_error() -> None:
    for bound in ("sqnr>=-7000dB", "max_abs<=1e308", "max_abs<=inf"):
        assert loss(parse_budget(bound), [turned(0.5)]) == pytest.approx(0.0, abs=1e-200)


def test_other_places_that_are_nan_lose_more_than_is_allowed() -> None:
    tally = Tally()
    tally.add(np.array([[1.0, 2.0]]), np.array([[1.0, np.nan]]))
    assert loss(parse_budget("cos>=0.5"), [{"y": tally}]) > 1


class Pretended(Recorded):
    """Inputs of which each loses as many thousandths as its number and the tokens that are merged say."""

    def __init__(self, *numbers: int) -> None:
        self.names = [f"input {n}" for n in numbers]
        self._numbers = numbers
        self.asked: list[tuple[object, int]] = []

    def alter(self, numbers: tuple[int, ...]) -> None:
        """Let inputs lose otherwise from now on."""
        self._numbers = numbers

    def measured(self, program: object, at: int) -> dict[str, Tally]:
        self.asked.append((program, at))
        assert isinstance(program, Pretend)
        return turned(1 - program.r * self._numbers[at] / 1000)


class Pretend:
    """Stands for a program with tokens merged."""

    def __init__(self, r: int) -> None:
        self.r = r


def pretended(*numbers: int) -> tuple[RecordedLosses, Pretended, list[int]]:
    """Return losses of pretended inputs, and how often each was asked and a program made."""
    recorded, made = Pretended(*numbers), []

    def merged(mergings: Sequence[Merging]) -> Program:
        made.append(mergings[0].r)
        return cast("Program", Pretend(mergings[0].r))

    return RecordedLosses(recorded, parse_budget("cos>=0.98"), merged), recorded, made


def test_the_hardest_input_stands_for_all() -> None:
    losses, recorded, made = pretended(1, 9, 2)
    exact = losses.of_all([Merging("a", 2)])
    # a mean of 4, and a standard error of √19/√3
    assert exact == pytest.approx(2 * (4 + (19 / 3) ** 0.5) / 20, rel=1e-3)
    assert losses.of_hardest([Merging("a", 3)]) == pytest.approx(1.5 * exact, rel=1e-3)
    assert [at for _, at in recorded.asked] == [0, 1, 2, 1] and made == [2, 3]


def test_nothing_runs_twice() -> None:
    losses, recorded, made = pretended(1, 9, 2)
    for _ in range(2):
        losses.of_all([Merging("a", 2)])
        losses.of_hardest([Merging("a", 2)])
        losses.summary([Merging("a", 2)])
    assert losses.runs == len(recorded.asked) == 3 and made == [2]


def test_what_decided_is_said() -> None:
    losses, _, _ = pretended(1, 9, 2)
    losses.of_all([Merging("a", 2)])
    said = losses.summary([Merging("a", 2)])
    assert (
        "cos is 0.992 on 3 recorded inputs" in said and "input 9 loses most (0.982, the others 0.997)" in said
    )
    alone, _, _ = pretended(5)
    alone.of_all([Merging("a", 1)])
    assert "the one recorded input" in alone.summary([Merging("a", 1)])


def test_what_is_said_is_about_the_schedule_itself() -> None:
    losses, recorded, _ = pretended(1, 9, 2)
    losses.of_all([Merging("a", 2)])
    recorded.alter((9, 1, 2))
    losses.of_all([Merging("a", 1)])
    assert "input 9 loses most (0.982, the others 0.997)" in losses.summary([Merging("a", 2)])
