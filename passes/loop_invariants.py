"""What every run of a loop computes alike is computed once: keys and values of a fixed source, for one.

    before   for each token: attention(q, source · W_k, source · W_v)
    after    k, v = source · W_k, source · W_v; for each token: attention(q, k, v)

In the bodies of loops of ONNX: whatever depends only on values outside of the body, or on states that every
run hands on as they are, as exporters write what a scripted loop does not change. What is moved stands in the
main graph then, where sites are found and other rules apply. A loop that is not run at all computes it, too.
Not in PyTorch: `torch.export` unrolls loops, and what each step of an unrolled loop computes alike,
`torch.compile` computes once; operators that take a body as a module fix what it is given.
Refused: random operators, those of other domains, branches; lookups and divisions of whole numbers, which may
fail where a loop is not run.

Source: Allen and Cocke: A Catalogue of Optimizing Transformations, 1971 (code motion).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from rewriter.rules.whole_rule import WholeRule

if TYPE_CHECKING:
    from rewriter.program.program import Program

__all__ = ["LoopInvariants"]


class LoopInvariants(WholeRule):
    """Computations in front of a loop, and not in every run of it. Exact."""

    name = "loop-invariants"
    looks_for: ClassVar[str] = "what does not change from run to run in the body of a loop"
    pays: ClassVar[frozenset[str]] = frozenset({"onnx", "ort"})
    follows: ClassVar[bool] = False

    def smaller(self, program: Program) -> tuple[Program, Mapping[str, int]]:
        """Return the program with smaller bodies."""
        made, moved = program.hoisted()
        return made, {"operators in each run of a loop": moved} if moved else {}
