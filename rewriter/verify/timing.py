"""Interleaved timing: what is compared takes turns, so that drift of the machine hits all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

__all__ = ["Timing", "interleaved"]

LEAST_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds by name, one entry per round.

    Parameters
    ----------
    seconds
        Times of each call in the order of the rounds; all have equally many.
    """

    seconds: Mapping[str, tuple[float, ...]]

    def median(self, name: str) -> float:
        """Return the median seconds of a call."""
        return median(self.seconds[name])

    def ratio(self, base: str, name: str) -> float:
        """Return how many times faster ``name`` is than ``base``: median of the ratios of each round."""
        return median(self._ratios(base, name))

    def spread(self, base: str, name: str) -> tuple[float, float]:
        """Return the smallest and largest ratio without the outermost tenth on either side."""
        ordered = sorted(self._ratios(base, name))
        cut = len(ordered) // 10
        return ordered[cut], ordered[-1 - cut]

    def _ratios(self, base: str, name: str) -> list[float]:
        return [a / b for a, b in zip(self.seconds[base], self.seconds[name], strict=True)]


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 15,
    warmup: int = 1,
    seconds: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time calls in turns.

    Parameters
    ----------
    calls
        What to time. Who goes first changes from round to round.
    rounds
        Number of rounds that count.
    warmup
        Rounds before that, not counted.
    seconds
        Stop after about so long, but not before three rounds.
    clock
        Seconds: the wall clock, or ``time.process_time`` for what runs on one thread of a machine that
        other work shares.
    """
    names = list(calls)
    for _ in range(warmup):
        for name in names:
            calls[name]()
    found: dict[str, list[float]] = {name: [] for name in names}
    start = time.perf_counter()
    for at in range(rounds):
        first = at % len(names)
        for name in names[first:] + names[:first]:
            before = clock()
            calls[name]()
            found[name].append(clock() - before)
        if seconds is not None and at + 1 >= LEAST_ROUNDS and time.perf_counter() - start > seconds:
            break
    return Timing({name: tuple(times) for name, times in found.items()})
