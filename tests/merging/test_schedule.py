from __future__ import annotations

from collections.abc import Sequence

import pytest

from rewriter.merging.schedule import COUNTS, STEPS, choose, front_loaded
from rewriter.merging.weave import Merging

SITES = [f"attention.{k}" for k in range(12)]


@pytest.mark.parametrize("tokens", [1, 2, 3, 17, 257, 4097])
@pytest.mark.parametrize("strength", [0.0, 0.1, 0.5])
def test_no_more_than_half_is_merged_and_less_and_less(tokens: int, strength: float) -> None:
    counts = [m.r for m in front_loaded(tokens, 1, SITES, strength)]
    assert counts == sorted(counts, reverse=True)
    for r in counts:
        assert 0 < r <= (tokens - 1) // 2
        tokens -= r


def merged(schedule: Sequence[Merging]) -> int:
    return sum(m.r for m in schedule)


def test_the_strongest_good_schedule_is_chosen() -> None:
    asked = []

    def good(schedule: Sequence[Merging]) -> bool:
        asked.append(schedule)
        return merged(schedule) <= 400

    found = choose(1025, 1, SITES, lambda s: -merged(s), good)
    ladders = [[front_loaded(1025, 1, SITES[:n], s / STEPS / 2) for s in range(STEPS + 1)] for n in COUNTS]
    fitting = [merged(s) for ladder in ladders for s in ladder if merged(s) <= 400]
    assert merged(found) == max(fitting) and len(asked) <= len(COUNTS) * 6


def test_nothing_is_merged_where_nothing_is_good() -> None:
    assert choose(1025, 1, SITES, lambda s: -merged(s), lambda s: False) == []
    assert choose(2, 1, SITES, lambda s: -merged(s), lambda s: True) == []
