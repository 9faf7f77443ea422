from __future__ import annotations

import time

from rewriter.verify.timing import Timing, interleaved


def test_ratio_is_the_median_of_the_rounds() -> None:
    timing = Timing({"old": (2.0, 4.0, 60.0), "new": (1.0, 1.0, 10.0)})
    assert timing.ratio("old", "new") == 4.0
    assert timing.spread("old", "new") == (2.0, 6.0)
    assert (timing.median("old"), timing.median("new")) == (4.0, 1.0)


def test_the_outermost_tenth_is_no_spread() -> None:
    timing = Timing({"old": (*([2.0] * 9), 1000.0), "new": (1.0,) * 10})
    assert timing.spread("old", "new") == (2.0, 2.0)


def test_takes_turns_and_who_goes_first_changes() -> None:
    calls: list[str] = []
    interleaved({n: (lambda n=n: calls.append(n)) for n in "abc"}, rounds=4, warmup=1)  # type: ignore[misc]
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc"


def test_stops_when_time_is_up_but_not_before_three_rounds() -> None:
    calls = {"slow": lambda: time.sleep(0.01), "fast": lambda: None}
    timing = interleaved(calls, rounds=100, warmup=0, seconds=0.0)
    assert len(timing.seconds["slow"]) == len(timing.seconds["fast"]) == 3
    assert timing.ratio("slow", "fast") > 1
