"""Division by the length of a vector becomes one operator: a root-mean-square norm with a weight.

    before   x · rsqrt(sum(x²) + eps)
    after    rms_norm(x, 1 / √n, eps / n), of n features

Without a number below the root, too. LpNormalization is slower in ONNX Runtime than what it stands for.
Refused: a target without the operator (ONNX before opset 23); a length that is not known.

Source: Zhang, Sennrich: Root Mean Square Layer Normalization, 2019, equation 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import TYPE_CHECKING, ClassVar

from rewriter.lower.errors import EmitError
from rewriter.rules import Match, Rule, any_of, axis, number, rsqrt, sum_, tensor

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle

__all__ = ["L2Norm"]

_x, _d = tensor("x"), axis("d")
_squares = sum_(_x**2, _d)


class L2Norm(Rule):
    """Vectors divided by their length, as one operator. Exact."""

    name = "l2-norm"
    formula = any_of("by", apart=_x * rsqrt(_squares + number("eps")), plain=_x * rsqrt(_squares))
    layouts: ClassVar = {"x": "... d"}
    pays = frozenset({"onnx", "ort"})  # PyTorch spells it out itself on a CPU
    result = "... d"

    def refuse(self, match: Match) -> str | None:
        """Refuse a length that is not known."""
        return (
            None if match.size("d").static else f"the length of the vectors is not known: {match.size('d')}"
        )

    def lower(self, e: Emitter, match: Match, values: Mapping[str, Handle]) -> Handle:
        """Emit ``rms_norm(x, 1 / √n, eps / n)``."""
        size = match.size("d")
        eps = match.number("eps") if match.label("by") == "apart" else 0.0
        weight = e.expand(e.constant(1 / sqrt(int(size)), match.dtype), (size,))
        found = e.standard("rms_norm", values["x"], weight, eps=eps / int(size))
        if found is None:
            raise EmitError("RMSNormalization is an operator from opset 23 on")
        return found
