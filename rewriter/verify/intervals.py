"""How sure one may be of a median: an interval that assumes nothing about how the values are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

__all__ = ["Interval", "median_interval"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A median and the interval that holds the true one.

    Parameters
    ----------
    median
        Of the values that were seen.
    low, high
        The interval.
    confidence
        How often an interval made this way holds the true median; for few values it may be less than
        what was asked for, and then the interval is from the smallest to the largest value.
    """

    median: float
    low: float
    high: float
    confidence: float

    def excludes(self, value: float) -> bool:
        """Whether a value is outside."""
        return not self.low <= value <= self.high


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return the narrowest pair of order statistics that holds the median with a given confidence.

    Each value is below the true median with probability one half, so the number of those below is
    binomial, whatever the distribution: ``[x(k), x(n+1-k)]`` holds the median with probability
    ``1 - 2 P(Bin(n, ½) < k)``. No resampling, no seed.

    Parameters
    ----------
    values
        Independent, at least one.
    confidence
        Asked for, between 0 and 1. Five values or fewer cannot reach 95 %.

    References
    ----------
    H. A. David and H. N. Nagaraja, *Order Statistics*, 3rd ed., 2003, section 7.1.

    Examples
    --------
    >>> found = median_interval([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])
    >>> found.low, found.high, found.confidence
    (1.0, 6.0, 0.96875)
    """
    ordered = sorted(values)
    count, k = len(ordered), 1
    outside = 0.5**count
    while k < (count + 1) // 2:
        further = outside + comb(count, k) * 0.5**count
        if 1 - 2 * further < confidence:
            break
        outside, k = further, k + 1
    return Interval(median(ordered), ordered[k - 1], ordered[count - k], 1 - 2 * outside)
