"""Looking for the cheapest schedule that keeps a budget on recorded inputs, in few runs of the program.

Schedules come in families (`rewriter.merging.schedule.Shape`), each a ladder from weak to strong. How far
from the original a schedule is grows nearly as a power of its strength, so the rung where the budget ends is
found by a secant through logarithms, not by halving. And the input that loses most decides: families are told
apart by it alone, and only the best of them runs on all inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf, isfinite, log
from typing import Protocol

from rewriter.merging.schedule import PARTS, SKIPS, STEPS, Shape, schedule
from rewriter.merging.weave import Merging

__all__ = ["CLOSE", "GAIN", "Losses", "choose", "strongest"]

GAIN = 0.98
"""What a family may cost of what the best one so far does, for a run of its own."""

CLOSE = 0.97
"""A stronger rung that would cost more than this share of a good one is not looked for."""

AIM, ENOUGH = 0.92, 0.85
"""Of what a budget allows, that rungs are predicted for, and that a good one is not improved upon."""

POWER, FLATTEST, STEEPEST = 2.5, 1.0, 6.0
"""How losses grow with strength until two of them are known, and the least and the most that is believed."""

PREDICTED = 4
"""Rungs that are predicted before what is left between them is halved."""

FIRST_SHARE = 3 / 8
"""Of the tokens, that the first schedule merges."""

HOPELESS = 1.5
"""Of what a budget allows, that the hardest input alone may predict for a run on the others."""


class Losses(Protocol):
    """How far schedules are from the original, as shares of what a budget allows: up to 1 keeps it."""

    def of_all(self, mergings: Sequence[Merging]) -> float:
        """Return the loss on all inputs together."""

    def of_hardest(self, mergings: Sequence[Merging]) -> float:
        """Return what the input that lost most last time loses, in proportion to what all lost then."""


def choose(
    tokens: int,
    protect: int,
    sites: Sequence[str],
    cost: Callable[[Sequence[Merging]], float],
    losses: Losses,
) -> list[Merging]:
    """Return the schedule with the least operations of the good ones that were tried; maybe an empty one.

    Parameters
    ----------
    tokens, protect
        How many there are, and how many of them are never merged.
    sites
        Ids of the sites that tokens may be merged behind, in order.
    cost
        Operations of a schedule.
    losses
        Asked as seldom as possible; what is returned kept the budget on all inputs together.
    """
    return _Search(tokens, protect, sites, cost, losses).found()


class _Search:
    def __init__(
        self,
        tokens: int,
        protect: int,
        sites: Sequence[str],
        cost: Callable[[Sequence[Merging]], float],
        losses: Losses,
    ) -> None:
        self._tokens, self._protect, self._sites = tokens, protect, sites
        self._cost, self._losses = cost, losses
        self._ladders: dict[Shape, list[list[Merging]]] = {}
        self._best: tuple[Shape, int] | None = None

    def found(self) -> list[Merging]:
        shapes = [Shape(skip, PARTS[0]) for skip in SKIPS]
        first = next((s for s in shapes if self._ladder(s)[_rung(FIRST_SHARE)]), None)
        if first is None:
            return []
        at = _rung(FIRST_SHARE)
        self._try(first, {at: self._losses.of_all(self._ladder(first)[at])})
        for shape in shapes:
            self._try(shape)
        skip = self._best[0].skip if self._best is not None else first.skip
        for part in PARTS[1:]:
            self._try(Shape(skip, part))
        return self._confirmed()

    def _confirmed(self) -> list[Merging]:
        """Return the strongest good schedule of the best family, on all inputs."""
        if self._best is None:
            return []
        shape, at = self._best
        rung = self._strongest(shape, self._of_all, 1, {}, at)
        return [] if rung is None else self._ladder(shape)[rung]

    def _try(self, shape: Shape, known: Mapping[int, float] | None = None) -> None:
        """Take a family for the best if the hardest input lets it cost less."""
        costs = [self._cost(mergings) for mergings in self._ladder(shape)]
        least = costs[0] if self._best is None else self._cost(self._ladder(self._best[0])[self._best[1]])
        low = next((k for k, c in enumerate(costs) if self._ladder(shape)[k] and c < GAIN * least), None)
        if low is None:
            return
        start = None if known else low
        rung = self._strongest(shape, self._losses.of_hardest, low, known or {}, start)
        if rung is not None:
            self._best = shape, rung

    def _strongest(
        self,
        shape: Shape,
        loss: Callable[[Sequence[Merging]], float],
        low: int,
        known: Mapping[int, float],
        start: int | None,
    ) -> int | None:
        ladder = self._ladder(shape)
        return strongest(
            lambda k: loss(ladder[k]), lambda k: self._cost(ladder[k]), low, STEPS, known=known, start=start
        )

    def _of_all(self, mergings: Sequence[Merging]) -> float:
        hardest = self._losses.of_hardest(mergings)
        return hardest if hardest > HOPELESS else self._losses.of_all(mergings)

    def _ladder(self, shape: Shape) -> list[list[Merging]]:
        if shape not in self._ladders:
            sites = shape.sites(self._sites)
            self._ladders[shape] = [
                schedule(self._tokens, self._protect, sites, s / STEPS) for s in range(STEPS + 1)
            ]
        return self._ladders[shape]


def strongest(
    loss: Callable[[int], float],
    cost: Callable[[int], float],
    low: int,
    high: int,
    *,
    known: Mapping[int, float] | None = None,
    start: int | None = None,
) -> int | None:
    """Return the strongest rung from ``low`` to ``high`` that was found to be good, or None.

    Parameters
    ----------
    loss
        Of a rung, as a share of what is allowed: good up to 1. Asked as seldom as possible.
    cost
        Of a rung; falls.
    low, high
        Rungs.
    known
        Losses that are known already, at least one unless there is a ``start``; none of them makes a rung
        good.
    start
        Where to look first; None is where those that are known predict.

    Examples
    --------
    >>> asked = []
    >>> strongest(lambda k: asked.append(k) or (k / 50) ** 3, lambda k: 200 - k, 1, 128, start=30)
    48
    >>> asked
    [30, 53, 48]
    """
    seen = dict(known or {})
    asked: set[int] = set()
    at = _predicted(seen, low, high) if start is None else start
    while True:
        seen[at] = loss(at)
        asked.add(at)
        good = max((k for k in asked if seen[k] <= 1), default=low - 1)
        bad = min((k for k in asked if seen[k] > 1 and k > good), default=high + 1)
        if bad - good <= 1:
            return good if good >= low else None
        halved = len(asked) >= PREDICTED
        at = (good + bad) // 2 if halved else _predicted(seen, good + 1, bad - 1)
        if good >= low and (seen[good] >= ENOUGH or cost(at) > CLOSE * cost(good)):
            return good


def _predicted(seen: Mapping[int, float], low: int, high: int) -> int:
    """Return the rung where a power of the strength through what was seen comes near to what is allowed."""
    usable = [(k, x) for k, x in seen.items() if x > 0 and isfinite(x)]
    if not usable:
        return low if any(x == inf for x in seen.values()) else high
    (k, x), *others = sorted(usable, key=lambda point: abs(log(point[1])))
    power = POWER
    if others and others[0][1] != x:
        power = log(others[0][1] / x) / log(others[0][0] / k)
        power = min(max(power, FLATTEST), STEEPEST)
    return max(int(min(k * (AIM / x) ** (1 / power), high)), low)


def _rung(share: float) -> int:
    return int(share * STEPS)
