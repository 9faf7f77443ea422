"""Operators that are leaves: shapes of their outputs, and their numbers where all inputs are constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from rewriter.algebra.dimensions import EvaluationError
from rewriter.algebra.evaluate import evaluate
from rewriter.algebra.frontends.onnx_scope import DTYPES, Call, op_name
from rewriter.algebra.frontends.onnx_shapes import quotient
from rewriter.algebra.prims import Prim, matmul
from rewriter.algebra.sizes import ONE, Size
from rewriter.program.graph import Node

__all__ = ["KEEPS_SHAPE", "computes_constants", "draws", "lazy_outputs", "opaque_dtype", "opaque_shape"]

Shape = tuple[Size, ...]

KEEPS_SHAPE = frozenset(
    "Acos Acosh Asin Asinh Atan Atanh BatchNormalization Bernoulli BitwiseNot Cast CastLike Ceil Celu"
    " Clip Cosh CumProd CumSum DequantizeLinear Dropout DynamicQuantizeLinear Elu EyeLike Gelu"
    " GroupNormalization HardSigmoid HardSwish Hardmax InstanceNormalization IsInf LRN"
    " LayerNormalization LeakyRelu LpNormalization MeanVarianceNormalization Mish PRelu QuantizeLinear"
    " RMSNormalization RandomNormalLike RandomUniformLike ReverseSequence RotaryEmbedding Round Scatter"
    " ScatterElements ScatterND Selu Shrink SimplifiedLayerNormalization Sinh Softsign Swish Tan"
    " TensorScatter ThresholdedRelu com.microsoft::BiasGelu com.microsoft::DequantizeLinear"
    " com.microsoft::FastGelu com.microsoft::Gelu com.microsoft::LayerNormalization"
    " com.microsoft::QuantizeLinear com.microsoft::QuickGelu com.microsoft::RotaryEmbedding"
    " com.microsoft::SimplifiedLayerNormalization com.microsoft::SkipLayerNormalization"
    " com.microsoft::SkipSimplifiedLayerNormalization".split()
)
"""Operators whose first output has the shape of the first operand."""

_CHANGES_DTYPE = frozenset(
    "QuantizeLinear DequantizeLinear DynamicQuantizeLinear IsInf Bernoulli RandomNormalLike RandomUniformLike"
    " EyeLike Cast CastLike com.microsoft::QuantizeLinear com.microsoft::DequantizeLinear".split()
)

_SUMS_LAST = frozenset(
    "com.microsoft::SkipLayerNormalization com.microsoft::SkipSimplifiedLayerNormalization".split()
)
"""Operators whose fourth output is the sum that is normalised."""

RANDOM = frozenset(
    "RandomNormal RandomUniform RandomNormalLike RandomUniformLike Bernoulli Multinomial Dropout".split()
)
"""Standard operators that may give another result on the same operands."""


def opaque_shape(call: Call, output: int) -> Shape | None:
    """Return the shape of a leaf as its operands determine it, or else as the graph states it, or None."""
    own = _own_shape(call, output)
    if own is None:
        return call.declared(output)
    return tuple(call.dim(k, len(own), output) if size is None else size for k, size in enumerate(own))


def opaque_dtype(call: Call, output: int) -> str | None:
    """Return the dtype of a leaf as the graph states it, or as its first operand has it."""
    stated = call.scope.dtype(call.outputs[output])
    same = output == 0 and call.op in _KEEPS_DTYPE and call.present(0)
    return call[0].dtype if stated is None and same else stated


def _own_shape(call: Call, output: int) -> Sequence[Size | None] | None:
    names = [name for name in call.node.inputs if name]
    if not names or not call.present(0) or not call.scope.unranked.isdisjoint(names):
        return None
    if output:
        return call[0].shape if call.op in _SUMS_LAST and output == 3 else None
    if call.op in KEEPS_SHAPE:
        return call[0].shape
    rule = _SHAPES.get(call.op)
    try:
        return None if rule is None else rule(call)
    except (ValueError, IndexError, TypeError):
        return None  # attributes or operands that the operator does not allow


def _pad(call: Call) -> Sequence[Size | None] | None:
    shape, pads, axes = call[0].shape, call.integers(1), call.numbers(3)
    if (stated := call.attribute("pads")) is not None:
        amounts: list[Size | None] = [Size.of(n) for n in stated]
    elif pads is None or (axes is None and call.present(3)):
        return (None,) * len(shape)
    else:
        amounts = list(pads.values)
    places = list(range(len(shape))) if axes is None else [axis % len(shape) for axis in axes]
    if len(amounts) != 2 * len(places):
        return None
    sizes: list[Size | None] = list(shape)
    for k, axis in enumerate(places):
        first, last = amounts[k], amounts[k + len(places)]
        sizes[axis] = None if first is None or last is None else shape[axis] + first + last
    return sizes


def _conv(call: Call) -> Sequence[Size | None]:
    x, weight = call[0].shape, call[1].shape
    return [x[0], weight[0], *_windows(call, [n.known() for n in weight[2:]])]


def _pool(call: Call) -> Sequence[Size | None]:
    x = call[0].shape
    return [*x[:2], *_windows(call, list(call.attribute("kernel_shape")))]


def _windows(call: Call, kernel: Sequence[int | None]) -> list[Size | None]:
    """Return the sizes of the spatial axes after a sliding window."""
    places = call[0].shape[2:]
    rank, mode = len(places), call.attribute("auto_pad", "NOTSET")
    strides = call.attribute("strides") or (1,) * rank
    dilations = call.attribute("dilations") or (1,) * rank
    pads = call.attribute("pads") or (0,) * (2 * rank)
    up = bool(call.attribute("ceil_mode", 0))
    sizes: list[Size | None] = []
    for k, size in enumerate(places):
        reach = kernel[k]
        if reach is None or up:
            sizes.append(None)
        elif mode.startswith("SAME"):
            sizes.append(quotient(size + (strides[k] - 1), Size.of(strides[k])))
        else:
            room = size + (pads[k] + pads[k + rank] - dilations[k] * (reach - 1) - 1)
            sizes.append(quotient(room, Size.of(strides[k])) + 1)
    return sizes


def _conv_transpose(call: Call) -> Sequence[Size | None] | None:
    x, weight = call[0].shape, call[1].shape
    rank = len(x) - 2
    if call.attribute("output_shape") is not None or call.attribute("auto_pad", "NOTSET") != "NOTSET":
        return [x[0], weight[1] * call.attribute("group", 1), *(None for _ in range(rank))]
    strides = call.attribute("strides") or (1,) * rank
    dilations = call.attribute("dilations") or (1,) * rank
    pads = call.attribute("pads") or (0,) * (2 * rank)
    more = call.attribute("output_padding") or (0,) * rank
    places = [
        (x[k + 2] - 1) * strides[k]
        + (weight[k + 2] - 1) * dilations[k]
        + (1 + more[k] - pads[k] - pads[k + rank])
        for k in range(rank)
    ]
    return [x[0], weight[1] * call.attribute("group", 1), *places]


def _resize(call: Call) -> Sequence[Size | None] | None:
    shape, scales, sizes = call[0].shape, call.array(2), call.integers(3)
    if (
        call.attribute("axes") is not None
        or call.attribute("keep_aspect_ratio_policy", "stretch") != "stretch"
    ):
        return (None,) * len(shape)
    if sizes is not None and len(sizes.values) == len(shape):
        return sizes.values
    if scales is None or scales.size != len(shape):
        return (None,) * len(shape)
    factors = [float(factor) for factor in scales.reshape(-1)]
    return [
        size * int(factor)
        if factor.is_integer()
        else Size.of(int(int(size) * factor))
        if size.static
        else None
        for size, factor in zip(shape, factors, strict=True)
    ]


def _global_pool(call: Call) -> Sequence[Size | None]:
    x = call[0].shape
    return [*x[:2], *(ONE for _ in x[2:])]


def _integer_matmul(call: Call) -> Sequence[Size | None]:
    return matmul(call[0], call[3 if call.op == "QLinearMatMul" else 1]).shape


def _arg(call: Call) -> Sequence[Size | None]:
    shape = call[0].shape
    axis = call.attribute("axis", 0) % len(shape)
    return (*shape[:axis], *((ONE,) if call.attribute("keepdims", 1) else ()), *shape[axis + 1 :])


def _gather_elements(call: Call) -> Sequence[Size | None]:
    return call[1].shape


def _gather_nd(call: Call) -> Sequence[Size | None] | None:
    indices, batch = call[1].shape, call.attribute("batch_dims", 0)
    depth = indices[-1].known()
    return None if depth is None else (*indices[:-1], *call[0].shape[batch + depth :])


def _non_zero(call: Call) -> Sequence[Size | None]:
    return Size.of(len(call[0].shape)), None


def _last(width: Callable[[Call], Size | None]) -> Callable[[Call], Sequence[Size | None]]:
    """Return a rule: the shape of the first operand but for its last axis."""
    return lambda call: (*call[0].shape[:-1], width(call))


def _heads_width(call: Call) -> Size | None:
    """Return the width that fused attention has after its heads are merged."""
    q, v = call[0], call.get(2)
    if v is None or len(v.shape) != 3:
        return q.shape[-1] if v is not None and v.shape == q.shape else None
    return v.shape[2]


def _packed_width(call: Call) -> Size | None:
    widths = call.attribute("qkv_hidden_sizes")
    return Size.of(widths[2]) if widths else call[1].shape[1].divide(3)


def _grouped_query(call: Call) -> Sequence[Size | None] | None:
    if call.present(1):
        return call[0].shape
    heads, kv_heads = call.attribute("num_heads"), call.attribute("kv_num_heads")
    size = call[0].shape[2].divide(heads + 2 * kv_heads)
    return (*call[0].shape[:2], None if size is None else size * heads)


def _embedding(call: Call) -> Sequence[Size | None]:
    return (*call[0].shape, call[2].shape[1])


def _quantized_product(call: Call) -> Sequence[Size | None]:
    return matmul(call[0], call[1]).shape


def _fused_attention(call: Call) -> Sequence[Size | None]:
    """Return the result's shape of an ``Attention`` that cannot be taken apart."""
    q, v = call[0].shape, call[2].shape
    if len(q) == 4:
        return (*q[:3], v[3])
    width = v[2].divide(call.attribute("kv_num_heads", 0))
    return (*q[:2], None if width is None else width * call.attribute("q_num_heads"))


_SHAPES: dict[str, Callable[[Call], Sequence[Size | None] | None]] = {
    "Pad": _pad,
    "Conv": _conv,
    "ConvInteger": _conv,
    "ConvTranspose": _conv_transpose,
    "Resize": _resize,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LpPool": _pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "MatMulInteger": _integer_matmul,
    "QLinearMatMul": _integer_matmul,
    "ArgMax": _arg,
    "ArgMin": _arg,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": _non_zero,
    "Attention": _fused_attention,
    "com.microsoft::Attention": _last(_packed_width),
    "com.microsoft::QAttention": _last(_packed_width),
    "com.microsoft::MultiHeadAttention": _last(_heads_width),
    "com.microsoft::GroupQueryAttention": _grouped_query,
    "com.microsoft::EmbedLayerNormalization": _embedding,
    "com.microsoft::MatMulNBits": _last(lambda call: Size.of(call.attribute("N"))),
    "com.microsoft::DynamicQuantizeMatMul": _quantized_product,
    "com.microsoft::MatMulIntegerToFloat": _quantized_product,
    "com.microsoft::FusedConv": _conv,
}


_KEEPS_DTYPE = (KEEPS_SHAPE - _CHANGES_DTYPE) | {
    "com.microsoft::Attention",
    "com.microsoft::MultiHeadAttention",
    "com.microsoft::GroupQueryAttention",
    "com.microsoft::MatMulNBits",
    "com.microsoft::DynamicQuantizeMatMul",
    "com.microsoft::FusedConv",
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Resize",
    "Pad",
    "Attention",
    "GatherElements",
    "GatherND",
}

_NUMBERS = {name: number for number, name in DTYPES.items()}


def computes_constants(call: Call) -> bool:
    """Whether the node is a deterministic standard operator of constants, without a graph inside."""
    names = [name for name in call.node.inputs if name]
    return (
        bool(names) and "::" not in call.op and call.scope.closed.issuperset(names) and not draws(call.node)
    )


def draws(node: Node) -> bool:
    """Whether an operator may give another result on the same operands: random, or with a graph inside."""
    return op_name(node) in RANDOM or node.native.holds_graph()


def lazy_outputs(call: Call) -> list[Callable[[], np.ndarray]]:
    """Return loaders of the node's outputs: the operator's reference implementation, run once when asked."""
    operands, opset, node = tuple(call.inputs), call.opset, call.node.native

    @cache
    def run() -> list[np.ndarray]:
        return _reference(node, operands, opset)

    def loader(at: int) -> Callable[[], np.ndarray]:
        return lambda: run()[at]

    return [loader(at) for at in range(len(call.outputs))]


def _reference(node: Any, operands: Sequence[Prim | None], opset: int) -> list[np.ndarray]:
    import onnx
    from onnx.reference import ReferenceEvaluator

    given = [x for x in operands if x is not None]
    arrays = [
        array.astype(onnx.helper.tensor_dtype_to_np_dtype(_NUMBERS[x.dtype]))
        if x.dtype in _NUMBERS
        else array
        for x, array in zip(given, evaluate(given, {}), strict=True)
    ]
    proto = node.whole()
    names = [f"x{k}" for k in range(len(given))]
    rest = iter(names)
    del proto.input[:]
    proto.input.extend("" if x is None else next(rest) for x in operands)
    outputs = [f"y{k}" for k in range(len(proto.output))]
    del proto.output[:]
    proto.output.extend(outputs)
    graph = onnx.helper.make_graph(
        [proto],
        "constant",
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in names],
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in outputs],
    )
    feeds = dict(zip(names, arrays, strict=True))
    # the reference lacks early versions of some operators (quantisation), whose meaning has not changed
    for version in (opset, onnx.defs.onnx_opset_version()):
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", version)])
        try:
            return [np.asarray(y) for y in ReferenceEvaluator(model).run(None, feeds)]
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            failure = error
    raise EvaluationError(f"{proto.name or proto.op_type} ({proto.op_type}) of constants fails: {failure}")
