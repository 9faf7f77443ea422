"""ONNX's ``FlexAttention`` of its preview domain: attention with functions of its scores and weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from rewriter.algebra.sizes import ZERO, Size
from rewriter.lower.attention import capped_and_masked
from rewriter.lower.band import emit_band
from rewriter.lower.emitter import Emitter, Handle
from rewriter.lower.onnx_writer import Tensor, onnx_type
from rewriter.sites.site import Band

if TYPE_CHECKING:
    from rewriter.lower.onnx_emitter import OnnxEmitter

__all__ = ["PREVIEW", "PREVIEW_DOMAIN", "flex_attention", "modified_attention"]

PREVIEW_DOMAIN = "ai.onnx.preview"

PREVIEW = "+preview"
"""Ends a target that may have operators of that domain."""

Function = Callable[[Emitter, Handle], Handle]

_DTYPES = ("float32", "float16")  # the scale is a float32 number


def modified_attention(
    e: OnnxEmitter, operands: tuple[Tensor | None, ...], settings: Mapping[str, Any]
) -> Tensor | None:
    """Return softmax attention by ``FlexAttention``, or None where the target does not ask for it.

    The functions become graphs of their own, which read nothing but their operand: ONNX's reference evaluator
    hands them no other value. It takes the root of the scale, which is therefore to be above 0.
    """
    q, k, v = operands
    if not e.target.endswith(PREVIEW) or q is None or k is None or v is None:
        return None
    if q.dtype not in _DTYPES or settings["scale"] <= 0:
        return None
    shape = (*q.shape[:3], k.shape[2])
    graphs: dict[str, Any] = {
        attribute: _graph(e, f"{attribute}_{len(e.nodes)}", settings[name], shape)
        for name, attribute in (("of_scores", "score_mod"), ("of_weights", "prob_mod"))
        if settings.get(name) is not None
    }
    return e.node(
        "FlexAttention",
        [q, k, v],
        (*q.shape[:3], v.shape[3]),
        q.dtype,
        PREVIEW_DOMAIN,
        scale=float(settings["scale"]),
        **graphs,
    )


def flex_attention(
    e: OnnxEmitter, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool, softcap: float | None
) -> Tensor | None:
    """Return attention without a bias by the same operator, or None; as `Emitter.attention` has it."""

    def of_scores(inner: Emitter, scores: Handle) -> Handle:
        mask = None
        if causal:
            rows, columns = inner.iota(q.shape[2]), inner.iota(k.shape[2])
            mask = emit_band(inner, Band(ZERO, None, 0), rows, columns, inner.dtype(scores))
        return capped_and_masked(inner, scores, softcap, mask)

    changed = of_scores if causal or softcap is not None else None
    return modified_attention(e, (q, k, v), {"scale": scale, "of_scores": changed})


def _graph(e: OnnxEmitter, name: str, function: Function, shape: tuple[Size, ...]) -> ir.Graph:
    """Return a graph of one operand, scores or weights in float32."""
    inner = type(e)(e.opset, e.target, f"{name}/")
    value = ir.Value(name=f"{name}/x", type=ir.TensorType(onnx_type("float32")))
    result = function(inner, inner.input(value, shape, "float32"))
    return ir.Graph([value], [result.value], nodes=inner.nodes, name=name)
