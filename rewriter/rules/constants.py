"""Numbers that follow from constants alone: what a model computes of its weights at every call."""

from __future__ import annotations

import numpy as np

from rewriter.algebra.evaluate import EvaluationError, evaluate
from rewriter.algebra.prims import Constant, Map, Prim
from rewriter.algebra.sizes import product
from rewriter.algebra.term import VIEWS

__all__ = ["LARGEST", "STEPS", "constant_of"]

LARGEST = 1 << 16
"""How many numbers there may be."""

STEPS = 16
"""Of how many steps they may follow."""


def constant_of(x: Prim) -> np.ndarray | None:
    """Return few numbers that are pointwise functions of constants, in float64, or None for anything else."""
    count = product(x.shape).known()
    if count is None or count > LARGEST or not _follows(x):
        return None
    try:
        (found,) = evaluate([x], {})
    except EvaluationError:
        return None
    return found


def _follows(x: Prim) -> bool:
    stack, steps = [x], 0
    while stack and steps <= STEPS:
        at = stack.pop()
        steps += 1
        if isinstance(at.form, Constant):
            continue
        if not isinstance(at.form, (Map, *VIEWS)):
            return False
        stack += at.inputs
    return not stack
