from __future__ import annotations

from collections.abc import Sequence

import pytest

from rewriter.merging.schedule import GAIN, SHAPES, STEPS, Shape, choose, schedule
from rewriter.merging.weave import Merging

SITES = [f"attention.{k}" for k in range(12)]


@pytest.mark.parametrize("tokens", [1, 2, 3, 17, 257, 4097])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("count", [0, 1, 2, 12])
def test_no_more_than_half_is_merged_and_less_and_less(tokens: int, share: float, count: int) -> None:
    found = schedule(tokens, 1, SITES[:count], share)
    counts = [m.r for m in found]
    assert [m.site for m in found] == SITES[: len(found)]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) <= share * (tokens - 1)
    for r in counts:
        assert 0 < r <= (tokens - 1) // 2
        tokens -= r


def test_shapes_say_behind_which_sites() -> None:
    assert list(Shape(0, 1).sites(SITES)) == SITES
    assert list(Shape(1, 2).sites(SITES)) == SITES[1:7]
    assert list(Shape(2, 4).sites(SITES[:3])) == SITES[2:3]
    assert list(Shape(1, 1).sites(SITES[:1])) == []


def merged(mergings: Sequence[Merging]) -> int:
    return sum(m.r for m in mergings)


def test_the_strongest_good_schedule_is_chosen() -> None:
    asked = []

    def good(mergings: Sequence[Merging]) -> bool:
        asked.append(mergings)
        return merged(mergings) <= 400 and mergings[0].site == SITES[1]

    found = choose(1025, 1, SITES, lambda s: 4000 - merged(s), good)
    ladders = [
        [schedule(1025, 1, shape.sites(SITES), s / STEPS) for s in range(STEPS + 1)] for shape in SHAPES
    ]
    fitting = [s for ladder in ladders for s in ladder if s and merged(s) <= 400 and s[0].site == SITES[1]]
    most = max(map(merged, fitting))
    assert found in fitting and 4000 - merged(found) <= (4000 - most) / GAIN
    assert len(asked) <= len(SHAPES) + 2 * STEPS.bit_length()


@pytest.mark.parametrize("limit", [-1, 60, 1000])
def test_shapes_that_come_to_the_same_are_tried_once(limit: int) -> None:
    asked: list[tuple[Merging, ...]] = []

    def good(mergings: Sequence[Merging]) -> bool:
        asked.append(tuple(mergings))
        return merged(mergings) <= limit

    choose(257, 1, SITES[:1], lambda s: 1000 - merged(s), good)
    assert asked and len(asked) == len(set(asked))


def test_nothing_is_merged_where_nothing_is_good() -> None:
    assert choose(1025, 1, SITES, lambda s: -merged(s), lambda s: False) == []
    assert choose(2, 1, SITES, lambda s: -merged(s), lambda s: True) == []
