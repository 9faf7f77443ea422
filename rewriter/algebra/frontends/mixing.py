"""Operators that are leaves: along which axes each entry of a result depends on other places than its own."""

from __future__ import annotations

from typing import Any, NamedTuple

from rewriter.algebra.frontends.axes import behaviour, is_random, source
from rewriter.algebra.frontends.onnx_scope import op_name
from rewriter.program.graph import Graph, Node

__all__ = ["Mixing", "mixing"]


class Mixing(NamedTuple):
    """What an operator reads for one entry of its result.

    Parameters
    ----------
    operands
        Names of the values that are broadcast to the result.
    last
        How many of the last axes it mixes: an entry depends on all places along them.
    """

    operands: tuple[str, ...]
    last: int


def mixing(graph: Graph, value: str) -> Mixing | None:
    """Return what an opaque value mixes, or None if that is not known."""
    node, _ = source(graph, value)
    known = behaviour(graph, value)
    if node is None or known is None or is_random(graph, value):
        return None
    if known.rule == "pointwise":
        return Mixing(known.operands, 0)
    if known.rule == "projected":
        return Mixing(known.operands[:1], 1)
    name = op_name(node) if not hasattr(node.native, "target") else _aten_name(node)
    if name in _EACH:
        return Mixing(known.operands, 0)
    if name in _LAST:
        return Mixing(known.operands, 1)
    last = _normalised(node, name)
    return None if last is None else Mixing(known.operands, last)


def _aten_name(node: Node) -> str:
    return node.op.removeprefix("aten::").partition(".")[0]


def _normalised(node: Node, name: str) -> int | None:
    """Return over how many of the last axes a layer is normalised."""
    if name in ("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm"):
        shape: Any = node.native.args[1] if len(node.native.args) > 1 else None
        return len(shape) if isinstance(shape, list | tuple) else None
    if name in ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"):
        at = node.native.attributes().get("axis", -1)
        return -at if at < 0 else None
    return None


_EACH = frozenset(
    "silu relu6 prelu _prelu_kernel hardswish log_sigmoid dequantize dropout"
    " Celu Clip Elu Gelu HardSigmoid HardSwish LeakyRelu Mish Round Selu Shrink Softsign Swish"
    " ThresholdedRelu Cast CastLike Ceil com.microsoft::BiasGelu com.microsoft::FastGelu com.microsoft::Gelu"
    " com.microsoft::QuickGelu".split()
)
_LAST = frozenset(
    "com.microsoft::SkipLayerNormalization com.microsoft::SkipSimplifiedLayerNormalization".split()
)
