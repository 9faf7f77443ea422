"""A softmax over branches that weighs a stack of maps reads each map once.

    before   sum over n of stack(x₀, x₁, …)[n] · softmax(a)[n]
    after    x₀ · p₀ + x₁ · p₁ + …, and for two branches one interpolation, where p = softmax(a)

The stack is never made, and the products are not kept: of 5 N + 1 transfers of a map between memory and
processor 3 N - 1 remain, and 3 of 11 for two branches where the target interpolates.
For the target triton it is one kernel, ``torch.ops.rewriter.weighed``, and N + 1 remain.
Selective kernels, split attention and adaptive feature aggregation are this. Refused: more than 8 branches.
What a graph computes as one matrix product reads each map once already, and does not count.

Source: Li, Wang, Hu, Yang: Selective Kernel Networks, 2019, equations 5 and 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, cast

from rewriter.blocks.formulas import BRANCH_SOFTMAX
from rewriter.blocks.weighing import between, places, weighed
from rewriter.rules import Match, Rule

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle, KernelEmitter

__all__ = ["BranchSoftmax"]


class BranchSoftmax(Rule):
    """A softmax over branches applied branch by branch. Exact."""

    name = "branch-softmax"
    formula = BRANCH_SOFTMAX
    layouts: ClassVar = {"x": "...", "a": "n ..."}
    apart: ClassVar = {"x": "n"}

    def lower(self, e: Emitter, match: Match, values: Mapping[str, Handle]) -> Handle:
        """Emit the weighted sum."""
        maps = [x for name, x in values.items() if name != "a"]
        if e.target == "triton":
            kernels = cast("KernelEmitter", e)
            return kernels.kernel("weighed", [values["a"], *maps], {}, e.shape(maps[0]))
        weights = places(e, e.softmax(values["a"], 0))
        one = between(e, maps[1], maps[0], weights[0]) if len(maps) == 2 else None
        return weighed(e, maps, weights) if one is None else one
