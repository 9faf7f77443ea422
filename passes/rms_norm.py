"""Root-mean-square normalisation that is spelled out becomes one operator.

    before   x · rsqrt(mean(x²) + eps) · weight
    after    rms_norm(x, weight, eps)

The weight may be missing. Refused: a target without the operator (ONNX before opset 23).

Source: Zhang, Sennrich: Root Mean Square Layer Normalization, 2019, equation 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from rewriter.lower.errors import EmitError
from rewriter.rules import Match, Rule, any_of, axis, constant, mean, number, rsqrt, tensor

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle

__all__ = ["RmsNorm"]

_x, _eps, _d = tensor("x"), number("eps"), axis("d")
_normal = _x * rsqrt(mean(_x**2, _d) + _eps)


class RmsNorm(Rule):
    """RMS normalisation over one axis as one operator. Exact."""

    name = "rms-norm"
    formula = any_of("", scaled=_normal * constant("weight", over=(_d,)), plain=_normal)
    layouts: ClassVar = {"x": "... d", "weight": "d"}
    pays = frozenset({"onnx", "ort", "triton"})  # PyTorch spells it out itself on a CPU
    result = "... d"

    def lower(self, e: Emitter, match: Match, values: Mapping[str, Handle]) -> Handle:
        """Emit ``rms_norm(x, weight, eps)``."""
        found = e.standard("rms_norm", values["x"], values.get("weight"), eps=match.number("eps"))
        if found is None:
            raise EmitError("RMSNormalization is an operator from opset 23 on")
        return found
