"""Interleaved timing: A and B take turns, so that drift of the machine hits both alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

__all__ = ["Timing", "interleaved"]

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of A and B, one entry per round.

    Parameters
    ----------
    a, b
        Wall time of each round, in the order in which they ran.
    """

    a: tuple[float, ...]
    b: tuple[float, ...]

    @property
    def median_a(self) -> float:
        """Median seconds of A."""
        return median(self.a)

    @property
    def median_b(self) -> float:
        """Median seconds of B."""
        return median(self.b)

    @property
    def ratio(self) -> float:
        """How many times faster B is: the median of the ratios A / B of the same round."""
        return median(self._ratios)

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest ratio without the outermost tenth on either side."""
        ordered = sorted(self._ratios)
        cut = len(ordered) // 10
        return ordered[cut], ordered[-1 - cut]

    @property
    def _ratios(self) -> list[float]:
        return [x / y for x, y in zip(self.a, self.b, strict=True)]


def interleaved(
    a: Call, b: Call, *, rounds: int = 15, warmup: int = 2, seconds: float | None = None
) -> Timing:
    """Time two calls in turns.

    Parameters
    ----------
    a, b
        What to time. Which goes first alternates from round to round.
    rounds
        Number of rounds that count.
    warmup
        Rounds before that, not counted.
    seconds
        Stop after about so long, but not before three rounds.
    """
    for _ in range(warmup):
        a()
        b()
    times_a: list[float] = []
    times_b: list[float] = []
    start = time.perf_counter()
    for at in range(rounds):
        if at % 2:
            times_b.append(_seconds(b))
            times_a.append(_seconds(a))
        else:
            times_a.append(_seconds(a))
            times_b.append(_seconds(b))
        if seconds is not None and at >= 2 and time.perf_counter() - start > seconds:
            break
    return Timing(tuple(times_a), tuple(times_b))


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
