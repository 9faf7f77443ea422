"""The sigmoid linear unit that is spelled out becomes one operator.

    before   x · sigmoid(x)
    after    silu(x)

Refused: a target without the operator (ONNX before opset 24, unless for ONNX Runtime).

Source: Elfwing, Uchibe, Doya: Sigmoid-Weighted Linear Units, 2017, equation 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from rewriter.lower.errors import EmitError
from rewriter.rules import Match, Rule, sigmoid, tensor

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle

__all__ = ["Silu"]

_x = tensor("x")


class Silu(Rule):
    """SiLU (Swish) as one operator. Exact."""

    name = "silu"
    formula = _x * sigmoid(_x)
    layouts: ClassVar = {"x": "..."}
    pays = frozenset({"torch", "triton", "onnx"})  # ONNX Runtime makes its own operator of it by itself

    def lower(self, e: Emitter, match: Match, values: Mapping[str, Handle]) -> Handle:
        """Emit ``silu(x)``."""
        found = e.standard("silu", values["x"])
        if found is None:
            raise EmitError("Swish is an operator from opset 24 on")
        return found
