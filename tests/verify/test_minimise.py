"""The smallest passing set: exact where there are few, 1-minimal else, whatever the test."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from rewriter.verify.minimise import Minimum, Trial, minimum

NAMES = [f"s{k}" for k in range(7)]


def _smallest(names: list[str], passes: set[frozenset[str]]) -> int:
    sizes = (n for n in range(len(names) + 1) for c in combinations(names, n) if frozenset(c) in passes)
    return next(sizes)


@pytest.mark.parametrize("seed", range(20))
def test_any_test_not_only_a_monotone_one_gives_the_smallest_set(seed: int) -> None:
    rng = random.Random(seed)
    every = [frozenset(c) for n in range(len(NAMES) + 1) for c in combinations(NAMES, n)]
    passes = {s for s in every if rng.random() < 0.1} | {frozenset(NAMES)}
    tried: list[frozenset[str]] = []

    def attempt(members: frozenset[str]) -> Trial:
        tried.append(members)
        return Trial(members in passes, float(len(NAMES) - len(members)))

    found = minimum(NAMES, attempt)
    assert found.members is not None and frozenset(found.members) in passes
    assert found.guarantee == "smallest" and len(found.members) == _smallest(NAMES, passes)


@pytest.mark.parametrize("needed", [{3}, {0, 29}, {5, 6, 7}, set(range(0, 30, 3)), set(range(30))])
def test_many_candidates_give_a_set_that_can_lose_no_member(needed: set[int]) -> None:
    names = [f"s{k}" for k in range(30)]
    wanted = {names[k] for k in needed}
    count = 0

    def attempt(members: frozenset[str]) -> Trial:
        nonlocal count
        count += 1
        return Trial(wanted <= members, float(len(wanted - members)))

    found = minimum(names, attempt, exhaustive=60)
    assert set(found.members or ()) == wanted
    assert found.guarantee == ("smallest" if len(wanted) == 1 else "1-minimal")
    assert count < 60 + len(names) ** 2


@pytest.mark.parametrize("seed", range(20))
def test_delta_debugging_is_1_minimal_on_tests_that_are_not_monotone(seed: int) -> None:
    rng = random.Random(seed)
    names = [f"s{k}" for k in range(12)]
    known: dict[frozenset[str], bool] = {frozenset(): False, frozenset(names): True}

    def attempt(members: frozenset[str]) -> Trial:
        ok = known.setdefault(members, rng.random() < 0.2)
        return Trial(ok, 0.0 if ok else 1.0)

    found = minimum(names, attempt, exhaustive=0)
    members = frozenset(found.members or ())
    assert attempt(members).ok
    if found.guarantee == "1-minimal":
        assert not any(attempt(members - {m}).ok for m in members)


def test_nothing_to_do_and_nothing_that_helps_are_told_apart() -> None:
    assert minimum(NAMES, lambda s: Trial(True, 0.0)) == Minimum((), "smallest")
    assert minimum(NAMES, lambda s: Trial(False, 1.0)) == Minimum(None, "none")
    assert minimum(["one"], lambda s: Trial(bool(s), 1.0)) == Minimum(("one",), "smallest")


def test_the_most_suspicious_is_tried_first() -> None:
    tried: list[frozenset[str]] = []

    def attempt(members: frozenset[str]) -> Trial:
        tried.append(members)
        return Trial("s0" in members, 1.0)

    minimum(NAMES, attempt)
    assert tried == [frozenset(), frozenset(NAMES), frozenset({"s0"})]
