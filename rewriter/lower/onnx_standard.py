"""ONNX's own operators, or ONNX Runtime's, for functions that rules find."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rewriter.lower.onnx_writer import Tensor

if TYPE_CHECKING:
    from rewriter.lower.onnx_emitter import OnnxEmitter

__all__ = ["standard"]

Operands = tuple[Tensor | None, ...]
Settings = Mapping[str, Any]

_MICROSOFT = "com.microsoft"


def standard(e: OnnxEmitter, name: str, operands: Operands, settings: Settings) -> Tensor | None:
    """Return the function by one operator, or None; see `rewriter.lower.emitter.Emitter.standard`."""
    write = _OPERATORS.get(name)
    return None if write is None else write(e, operands, settings)


def _layer_norm(e: OnnxEmitter, operands: Operands, settings: Settings) -> Tensor | None:
    x, weight, bias = operands
    if e.opset < 17 or x is None:
        return None
    inputs = [x, _ones(e, x) if weight is None else weight, *([bias] if bias is not None else [])]
    return e.node("LayerNormalization", inputs, x.shape, x.dtype, epsilon=settings["eps"], axis=-1)


def _rms_norm(e: OnnxEmitter, operands: Operands, settings: Settings) -> Tensor | None:
    x, weight = operands
    if e.opset < 23 or x is None:
        return None
    inputs = [x, _ones(e, x) if weight is None else weight]
    return e.node("RMSNormalization", inputs, x.shape, x.dtype, epsilon=settings["eps"], axis=-1)


def _gelu(e: OnnxEmitter, operands: Operands, settings: Settings) -> Tensor | None:
    (x,) = operands
    assert x is not None
    if e.opset >= 20:
        approximate = "tanh" if settings["tanh"] else "none"
        return e.node("Gelu", [x], x.shape, x.dtype, approximate=approximate)
    if e.target == "ort":
        return e.node("FastGelu" if settings["tanh"] else "Gelu", [x], x.shape, x.dtype, domain=_MICROSOFT)
    return None


def _silu(e: OnnxEmitter, operands: Operands, settings: Settings) -> Tensor | None:
    (x,) = operands
    assert x is not None
    if e.opset >= 24:
        return e.node("Swish", [x], x.shape, x.dtype)
    if e.target == "ort":
        return e.node("QuickGelu", [x], x.shape, x.dtype, domain=_MICROSOFT, alpha=1.0)
    return None


def _ones(e: OnnxEmitter, x: Tensor) -> Tensor:
    return e.expand(e.constant(1.0, x.dtype), x.shape[-1:])


_OPERATORS: dict[str, Callable[[OnnxEmitter, Operands, Settings], Tensor | None]] = {
    "gelu": _gelu,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "silu": _silu,
}
