"""Running sums that are looked into: those of what is made of features."""

from __future__ import annotations

from rewriter.algebra.prims import Prim, running_sum

__all__ = ["LONGEST", "sum_of_features"]

LONGEST = 1 << 12
"""Sums over more entries are not looked into: a triangle of ones has the square of that many."""


def sum_of_features(x: Prim, axis: int) -> Prim | None:
    """Return the running sum of a tensor of tokens; None for positions, samples and other sums."""
    n = x.shape[axis]
    many = n.static and int(n) > LONGEST
    return None if many or len(x.shape) < 3 or "float" not in (x.dtype or "") else running_sum(x, axis)
