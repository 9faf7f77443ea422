"""What operators that are leaves do to axes, and which of them are random: one small table per dialect."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, NamedTuple

from rewriter.algebra.frontends.aten_closed import deterministic
from rewriter.algebra.frontends.onnx_opaque import KEEPS_SHAPE, draws
from rewriter.algebra.frontends.onnx_scope import op_name
from rewriter.program.graph import Graph, Node

__all__ = ["AxisRule", "Behaviour", "behaviour", "is_random", "source"]

AxisRule = Literal["kept", "pointwise", "convolved", "resampled", "projected"]
"""What the axes of a result are.

``kept``: those of the first operand. ``pointwise``: those of the operands, which are broadcast.
``convolved``: batch, channels that the weights make, and the places of the first operand. ``resampled``:
those of the first operand, some with another number of places. ``projected``: those of the first operand
but the last one, which the other operands make.
"""


class Behaviour(NamedTuple):
    """What the axes of a value are.

    Parameters
    ----------
    rule
        See `AxisRule`.
    operands
        Names of the values that the operator reads, in order.
    """

    rule: AxisRule
    operands: tuple[str, ...]


def behaviour(graph: Graph, value: str) -> Behaviour | None:
    """Return how the axes of an opaque value come from its operands, or None if that is not known."""
    node, at = source(graph, value)
    if node is None:
        return None
    rule = _aten(node) if hasattr(node.native, "target") else _ONNX.get(op_name(node))
    if rule is None or at not in _RESULTS.get(op_name(node), (0,)):
        return None
    return Behaviour(rule, tuple(name for name in node.inputs if name))


def is_random(graph: Graph, value: str) -> bool:
    """Whether the operator that writes a value may give another result on the same operands."""
    node, _ = source(graph, value)
    if node is None or node.native is None:
        return False
    return not deterministic(node.native) if hasattr(node.native, "target") else draws(node)


def source(graph: Graph, value: str) -> tuple[Node | None, int]:
    """Return the operator that computes a value, and which of its results it is."""
    node = graph.producer(value)
    if node is None:
        return None, 0
    if node.op != "getitem":
        return node, node.outputs.index(value)
    at = node.native.args[1]
    return graph.producer(node.inputs[0] or ""), at if isinstance(at, int) else -1


def _aten(node: Node) -> AxisRule | None:
    rule = _ATEN.get(node.op.removeprefix("aten::").partition(".")[0])
    return "pointwise" if rule is None and _is_pointwise(node.native.target) else rule


@cache
def _is_pointwise(target: Any) -> bool:
    return any(str(tag) == "Tag.pointwise" for tag in getattr(target, "tags", ()))


def _table(rules: dict[AxisRule, str]) -> dict[str, AxisRule]:
    return {name: rule for rule, names in rules.items() for name in names.split()}


_ATEN = _table(
    {
        "kept": "layer_norm native_layer_norm rms_norm _fused_rms_norm group_norm native_group_norm"
        " batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training"
        " cudnn_batch_norm _batch_norm_with_update _batch_norm_no_update instance_norm dropout native_dropout"
        " feature_dropout softmax _softmax log_softmax _log_softmax cumsum cumprod logcumsumexp"
        " scatter scatter_add scatter_reduce index_put index_add index_copy index_fill masked_scatter"
        " slice_scatter select_scatter fake_quantize_per_tensor_affine"
        " fake_quantize_per_channel_affine silu relu6 rrelu"
        " prelu _prelu_kernel hardswish log_sigmoid log_sigmoid_forward special_erf dequantize"
        " quantized_decomposed::quantize_per_tensor quantized_decomposed::dequantize_per_tensor"
        " quantized_decomposed::quantize_per_channel quantized_decomposed::dequantize_per_channel",
        "convolved": "conv1d conv2d conv3d convolution _convolution conv_transpose1d conv_transpose2d"
        " conv_transpose3d mkldnn_convolution cudnn_convolution",
        "resampled": "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices"
        " max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d"
        " _adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool3d adaptive_max_pool1d"
        " adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d"
        " upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d"
        " _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d"
        " _upsample_bilinear2d_aa _upsample_bicubic2d_aa pad constant_pad_nd reflection_pad1d"
        " reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d",
    }
)

_REORDERS = "ReverseSequence EyeLike RandomNormalLike RandomUniformLike Bernoulli".split()
_ONNX = _table(
    {
        "kept": " ".join(KEEPS_SHAPE.difference(_REORDERS)),
        "convolved": "Conv ConvTranspose ConvInteger QLinearConv com.microsoft::FusedConv",
        "resampled": "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool Resize Upsample"
        " Pad",
        "projected": "MatMulInteger QLinearMatMul com.microsoft::MatMulNBits"
        " com.microsoft::DynamicQuantizeMatMul com.microsoft::MatMulIntegerToFloat",
    }
)

_RESULTS = {
    "com.microsoft::SkipLayerNormalization": (0, 3),
    "com.microsoft::SkipSimplifiedLayerNormalization": (0, 3),
}
"""Which results a rule is about, where that is not the first one alone."""
