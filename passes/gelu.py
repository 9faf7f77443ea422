"""The Gaussian error linear unit that is spelled out becomes one operator.

    before   x / 2 · (1 + erf(x / √2)), or the same with tanh(√(2 / π) (x + 0.044715 x³)) for erf
    after    gelu(x)

Refused: a target without the operator (ONNX before opset 20, unless for ONNX Runtime).

Source: Hendrycks, Gimpel: Gaussian Error Linear Units, 2016, section 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import pi, sqrt
from typing import TYPE_CHECKING, ClassVar

from rewriter.lower.errors import EmitError
from rewriter.rules import Match, Rule, any_of, call, tanh, tensor

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle

__all__ = ["Gelu"]

_x = tensor("x")
_cubic = any_of("", sum=_x + 0.044715 * _x**3, product=_x * (1 + 0.044715 * _x**2))
_erf, _tanh = call("erf", sqrt(1 / 2) * _x), tanh(sqrt(2 / pi) * _cubic)


class Gelu(Rule):
    """GELU, by the error function or by tanh, as one operator. Exact."""

    name = "gelu"
    formula = any_of("by", erf=0.5 * _x * (1 + _erf), tanh=0.5 * _x * (1 + _tanh))
    layouts: ClassVar = {"x": "..."}

    def lower(self, e: Emitter, match: Match, values: Mapping[str, Handle]) -> Handle:
        """Emit ``gelu(x)``."""
        found = e.standard("gelu", values["x"], tanh=match.label("by") == "tanh")
        if found is None:
            raise EmitError("Gelu is an operator from opset 20 on")
        return found
