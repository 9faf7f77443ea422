from __future__ import annotations

from collections.abc import Sequence
from math import inf

import pytest

from rewriter.merging.schedule import PARTS, SKIPS, STEPS, Shape, schedule
from rewriter.merging.search import CLOSE, choose, strongest
from rewriter.merging.weave import Merging

SITES = [f"attention.{k}" for k in range(12)]


def merged(mergings: Sequence[Merging]) -> int:
    return sum(m.r for m in mergings)


def cost(mergings: Sequence[Merging]) -> float:
    return 4000.0 - merged(mergings)


class Known:
    """Losses of a known kind on a few inputs, of which the first loses most; counts the runs."""

    def __init__(self, limit: float, power: float = 3.0, inputs: int = 4, favourite: str = SITES[1]) -> None:
        self.limit, self.power, self.inputs, self.favourite = limit, power, inputs, favourite
        self.runs: set[tuple[tuple[Merging, ...], int]] = set()

    def exact(self, mergings: Sequence[Merging]) -> float:
        share = merged(mergings) / self.limit if self.limit > 0 else inf
        penalty = 1.0 if mergings and mergings[0].site == self.favourite else 2.0
        return penalty * float(share**self.power)

    def of_all(self, mergings: Sequence[Merging]) -> float:
        self.runs |= {(tuple(mergings), at) for at in range(self.inputs)}
        return self.exact(mergings)

    def of_hardest(self, mergings: Sequence[Merging]) -> float:
        self.runs.add((tuple(mergings), 0))
        return self.exact(mergings)


def ladders() -> list[list[list[Merging]]]:
    shapes = [Shape(skip, part) for skip in SKIPS for part in PARTS]
    return [[schedule(1025, 1, s.sites(SITES), k / STEPS) for k in range(STEPS + 1)] for s in shapes]


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("limit", [200, 400, 900])
@pytest.mark.parametrize("favourite", SITES[:3])
def test_what_is_chosen_is_good_and_close_to_the_cheapest(power: float, limit: int, favourite: str) -> None:
    losses = Known(limit, power, favourite=favourite)
    found = choose(1025, 1, SITES, cost, losses)
    assert found and losses.exact(found) <= 1
    assert all((tuple(found), at) in losses.runs for at in range(losses.inputs))
    best = min(cost(s) for ladder in ladders() for s in ladder if s and losses.exact(s) <= 1)
    assert cost(found) <= best / CLOSE / CLOSE
    assert len(losses.runs) <= 26


def test_no_run_is_asked_for_twice_where_shapes_come_to_the_same() -> None:
    losses = Known(120, favourite=SITES[0])
    found = choose(257, 1, SITES[:1], cost, losses)
    assert [m.site for m in found] == SITES[:1] and 110 <= merged(found) <= 120


def test_nothing_is_merged_where_nothing_is_good() -> None:
    assert choose(1025, 1, SITES, cost, Known(0)) == []
    assert choose(2, 1, SITES, cost, Known(1e9)) == []
    assert choose(1025, 1, [], cost, Known(1e9)) == []


def test_what_the_hardest_input_promises_is_not_believed() -> None:
    class Promising(Known):
        def of_hardest(self, mergings: Sequence[Merging]) -> float:
            return super().of_hardest(mergings) / 8

    losses = Promising(300)
    found = choose(1025, 1, SITES, cost, losses)
    assert found and losses.exact(found) <= 1 and cost(found) <= (4000 - 300) / CLOSE


@pytest.mark.parametrize("start", [1, 7, 40, 100])
@pytest.mark.parametrize("end", [0, 1, 2, 63, 99, 100, 1000])
def test_a_step_is_climbed_and_not_passed(start: int, end: int) -> None:
    found = strongest(lambda k: 0.5 if k <= end else 2.0, lambda k: 1e-9 * (1000 - k), 1, 100, start=start)
    asked: list[int] = []

    def loss(k: int) -> float:
        asked.append(k)
        return 0.5 if k <= end else 2.0

    assert strongest(loss, lambda k: float(0.5**k), 1, 100, start=start) == (min(end, 100) or None)
    assert len(asked) == len(set(asked)) <= 14
    assert (found is None) == (end == 0) and (found or 0) <= end


def test_losses_that_are_no_numbers_make_nothing_good() -> None:
    assert strongest(lambda k: inf, lambda k: float(-k), 1, 100, start=50) is None
    assert strongest(lambda k: 0.0, lambda k: float(0.5**k), 1, 100, start=50) == 100


@pytest.mark.parametrize("limit", [0, 1e-3])
def test_where_nothing_is_good_little_is_tried(limit: float) -> None:
    losses = Known(limit)
    assert choose(1025, 1, SITES, cost, losses) == []
    assert len(losses.runs) <= losses.inputs + 5


def test_a_loss_that_is_next_to_nothing_asks_for_the_strongest() -> None:
    assert strongest(lambda k: 1e-318 * k, lambda k: float(0.5**k), 1, 100, start=3) == 100
