"""Mish that is spelled out becomes one operator.

    before   x · tanh(log(1 + exp(x)))
    after    mish(x)

Softplus may be an operator already. Refused: a target without the operator (ONNX before opset 18).

Source: Misra: Mish: A Self Regularized Non-Monotonic Activation Function, 2019, equation 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from rewriter.lower.errors import EmitError
from rewriter.rules import Match, Rule, any_of, call, tanh, tensor

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle

__all__ = ["Mish"]

_x = tensor("x")
_softplus = any_of("", operator=call("softplus", _x), spelled=call("log", 1 + call("exp", _x)))


class Mish(Rule):
    """Mish as one operator. Exact."""

    name = "mish"
    formula = _x * tanh(_softplus)
    layouts: ClassVar = {"x": "..."}
    pays = frozenset({"torch", "triton"})  # ONNX Runtime's operator is slower than its parts

    def lower(self, e: Emitter, match: Match, values: Mapping[str, Handle]) -> Handle:
        """Emit ``mish(x)``."""
        found = e.standard("mish", values["x"])
        if found is None:
            raise EmitError("Mish is an operator from opset 18 on")
        return found
