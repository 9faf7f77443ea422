"""Layer normalisation that is spelled out becomes one operator.

    before   (x - mean(x)) · rsqrt(mean((x - mean(x))²) + eps) · weight + bias
    after    layer_norm(x, weight, bias, eps)

The variance may be the mean of the squares less the square of the mean; weight and bias may be missing.
Refused: a target without the operator (ONNX before opset 17).

Source: Ba, Kiros, Hinton: Layer Normalization, 2016, equation 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from rewriter.lower.errors import EmitError
from rewriter.rules import Match, Rule, any_of, axis, constant, mean, number, rsqrt, tensor

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle

__all__ = ["LayerNorm"]

_x, _eps, _d = tensor("x"), number("eps"), axis("d")
_weight, _bias = constant("weight", over=(_d,)), constant("bias", over=(_d,))
_centred = _x - mean(_x, _d)
_variance = any_of("", centred=mean(_centred**2, _d), moments=mean(_x**2, _d) - mean(_x, _d) ** 2)
_normal = _centred * rsqrt(_variance + _eps)


class LayerNorm(Rule):
    """Layer normalisation over one axis as one operator. Exact."""

    name = "layer-norm"
    formula = any_of(
        "", affine=_normal * _weight + _bias, scaled=_normal * _weight, shifted=_normal + _bias, plain=_normal
    )
    layouts: ClassVar = {"x": "... d", "weight": "d", "bias": "d"}
    result = "... d"

    def lower(self, e: Emitter, match: Match, values: Mapping[str, Handle]) -> Handle:
        """Emit ``layer_norm(x, weight, bias, eps)``."""
        weight, bias = values.get("weight"), values.get("bias")
        found = e.standard("layer_norm", values["x"], weight, bias, eps=match.number("eps"))
        if found is None:
            raise EmitError("LayerNormalization is an operator from opset 17 on")
        return found
