from __future__ import annotations

import pytest

from rewriter.merging.schedule import Shape, schedule

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


def test_protected_tokens_are_never_merged() -> None:
    for tokens in (1, 5, 6, 7):
        assert schedule(tokens, 6, SITES, 1.0) == []
    assert [m.r for m in schedule(9, 6, SITES[:1], 0.5)] == [1]


def test_shapes_say_behind_which_sites() -> None:
    assert list(Shape(0, 1).sites(SITES)) == SITES
    assert list(Shape(1, 2).sites(SITES)) == SITES[1:7]
    assert list(Shape(2, 4).sites(SITES[:3])) == SITES[2:3]
    assert list(Shape(1, 1).sites(SITES[:1])) == []
