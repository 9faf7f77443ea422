"""The sum of maps that are stacked first adds them where they are.

    before   sum over n of stack(x₀, x₁, …)[n]
    after    x₀ + x₁ + …

Selective kernels pool such a sum. Refused: more than 8 branches.

Source: Li, Wang, Hu, Yang: Selective Kernel Networks, 2019, equation 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import TYPE_CHECKING, ClassVar

from rewriter.blocks.formulas import BRANCH_SUM
from rewriter.rules import Match, Rule

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle

__all__ = ["BranchSum"]


class BranchSum(Rule):
    """The sum over a stack without the stack. Exact."""

    name = "branch-sum"
    formula = BRANCH_SUM
    layouts: ClassVar = {"x": "..."}
    apart: ClassVar = {"x": "n"}

    def lower(self, e: Emitter, match: Match, values: Mapping[str, Handle]) -> Handle:
        """Emit the additions."""
        return reduce(lambda a, b: e.map("add", a, b), values.values())
