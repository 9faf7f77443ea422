from __future__ import annotations

import time

from rewriter.verify.timing import Timing, interleaved


def test_ratio_is_the_median_of_the_rounds() -> None:
    timing = Timing((2.0, 4.0, 60.0), (1.0, 1.0, 10.0))
    assert timing.ratio == 4.0
    assert timing.spread == (2.0, 6.0)
    assert (timing.median_a, timing.median_b) == (4.0, 1.0)


def test_takes_turns_and_alternates_who_goes_first() -> None:
    calls: list[str] = []
    interleaved(lambda: calls.append("a"), lambda: calls.append("b"), rounds=4, warmup=1)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab" + "ba"


def test_stops_when_time_is_up_but_not_before_three_rounds() -> None:
    timing = interleaved(lambda: time.sleep(0.01), lambda: None, rounds=100, warmup=0, seconds=0.0)
    assert len(timing.a) == len(timing.b) == 3
    assert timing.ratio > 1
