"""What a graph computes for nothing is removed, by the passes that onnx-ir and onnxscript maintain.

    before   values that only constants decide; views of views; identities; repetitions; unread values
    after    constants, and each value once

For ONNX; in PyTorch what is not read is removed with every edit, and `torch.compile` does the rest. `exact`
cleans up after other rules only: a file on which none of them fires stays as it is, byte for byte.
Refused: constants of more than 8,192 elements are neither read nor made, so that files do not grow.

Source: onnx-ir, `onnx_ir.passes.common`; onnxscript, `onnxscript.optimizer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from rewriter.rules.whole_rule import WholeRule

if TYPE_CHECKING:
    from rewriter.program.program import Program

__all__ = ["CleanUp"]


class CleanUp(WholeRule):
    """Constants folded, repetitions, identities and unread values removed. Exact."""

    name = "clean-up"
    looks_for: ClassVar[str] = "constants, identities, repetitions and unread values"
    pays: ClassVar[frozenset[str]] = frozenset({"onnx", "ort"})

    def smaller(self, program: Program) -> tuple[Program, Mapping[str, int]]:
        """Return the program without them."""
        return program.tidied()
