"""Whether a model gives the same twice: one that is random, or keeps state, has no noise floor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rewriter.program.program import Arrays
from rewriter.verify.comparison import Comparison
from rewriter.verify.metrics import is_floating, max_abs, pattern_mismatches
from rewriter.verify.noise import MODEL_FACTOR, floor

__all__ = ["same_twice", "unrepeatable"]


def same_twice(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> bool:
    """Whether two runs of one model on one input gave the same, but for what rounding may do to a sum.

    >>> same_twice([np.ones(3)], [np.ones(3)]), same_twice([np.ones(3)], [np.array([1.0, 1.0, 1.01])])
    (True, False)
    """
    return all(x.shape == y.shape and _same(x, y) for x, y in zip(first, second, strict=True))


def unrepeatable(comparison: Comparison, inputs: Arrays, expected: Sequence[np.ndarray]) -> tuple[bool, bool]:
    """Return whether the original, and the other model, give something else when they are run again.

    Parameters
    ----------
    comparison
        The models.
    inputs
        One input that both can run.
    expected
        What the original gave on it.

    Raises
    ------
    RunError
        When a model cannot be run on the inputs a second time.
    """
    original = not same_twice(expected, comparison.run_original(inputs))
    rewritten = not same_twice(*(comparison.run_rewritten(inputs) for _ in range(2)))
    return original, rewritten


def _same(x: np.ndarray, y: np.ndarray) -> bool:
    if not is_floating(x.dtype):
        return np.array_equal(x, y)
    return not pattern_mismatches(x, y) and max_abs(x, y) <= MODEL_FACTOR * floor(x, x.dtype)
