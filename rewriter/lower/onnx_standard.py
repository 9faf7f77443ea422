"""ONNX's own operators, or ONNX Runtime's, for functions that have one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from rewriter.algebra.sizes import ONE, Size, product
from rewriter.lower.onnx_flex import modified_attention
from rewriter.lower.onnx_writer import Tensor

if TYPE_CHECKING:
    from rewriter.lower.onnx_emitter import OnnxEmitter

__all__ = ["standard"]

Operands = tuple[Tensor | None, ...]
Settings = Mapping[str, Any]

_MICROSOFT = "com.microsoft"
_ATTENTION_DTYPES = ("float32", "float16")  # the operator computes float64 in float32


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


def _group_norm(e: OnnxEmitter, operands: Operands, settings: Settings) -> Tensor | None:
    x, weight, bias = operands
    assert x is not None
    batch, channels, groups = x.shape[0], x.shape[1], Size.of(settings["groups"])
    alone = channels == groups
    given = x if alone else e.reshape(x, (batch, groups, product(x.shape[1:]).divide(groups) or ONE))
    scale = e.expand(e.constant(1.0, x.dtype), (groups,)) if weight is None or not alone else weight
    shift = e.expand(e.constant(0.0, x.dtype), (groups,)) if bias is None or not alone else bias
    inputs = [given, scale, shift]
    made = e.node("InstanceNormalization", inputs, given.shape, x.dtype, epsilon=settings["eps"])
    if alone:
        return made
    made = e.reshape(made, x.shape)
    column = (channels, *(ONE,) * (len(x.shape) - 2))
    made = made if weight is None else e.map("mul", made, e.reshape(weight, column))
    return made if bias is None else e.map("add", made, e.reshape(bias, column))


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


def _rotary(e: OnnxEmitter, operands: Operands, settings: Settings) -> Tensor | None:
    x, cos, sin = operands
    assert x is not None and cos is not None and sin is not None
    named: dict[str, Any] = {"interleaved": int(settings["interleaved"])}
    if settings["heads"] is not None:
        named["num_heads"] = settings["heads"]
    if e.opset >= 23:
        return e.node("RotaryEmbedding", [x, cos, sin], x.shape, x.dtype, **named)
    if e.target != "ort":
        return None
    batch, places, pairs = cos.shape
    # its table is one row per place; of several batches, one after the other
    at = e.reshape(e.iota(batch * places), (batch, places)) if batch != ONE else e.constant(0, "int64")
    if batch == ONE:
        at = e.reshape(at, (ONE,))
    table = [e.reshape(t, (batch * places, pairs)) for t in (cos, sin)]
    return e.node("RotaryEmbedding", [x, at, *table], x.shape, x.dtype, domain=_MICROSOFT, **named)


def _sliding_attention(e: OnnxEmitter, operands: Operands, settings: Settings) -> Tensor | None:
    q, k, v = operands
    if not _asked_for(e, 25) or q is None or k is None or v is None or q.dtype not in _ATTENTION_DTYPES:
        return None
    names = {"left": "left_window_size", "right": "right_window_size"}
    window = {attribute: settings[name] for name, attribute in names.items() if settings[name] is not None}
    if settings["softcap"] is not None:
        window["softcap"] = float(settings["softcap"])
    shape = (*q.shape[:3], v.shape[3])
    return e.node("Attention", [q, k, v], shape, q.dtype, scale=float(settings["scale"]), **window)


def _causal_sums(e: OnnxEmitter, operands: Operands, _: Settings) -> Tensor | None:
    q, k, v = operands
    if not _asked_for(e, 27) or q is None or k is None or v is None:
        return None
    batch, heads, length, features = q.shape
    groups, width = v.shape[1], v.shape[3]
    known = (heads, groups, features, width)
    if not all(size.static for size in known):
        return None
    packed = [_packed(e, x) for x in (q, k, v)]
    named: dict[str, Any] = {"q_num_heads": int(heads), "kv_num_heads": int(groups)}
    shape = (batch, length, heads * width)
    out = e.node("LinearAttention", packed, shape, q.dtype, after=1, update_rule="linear", scale=1.0, **named)
    return e.permute(e.reshape(out, (batch, length, heads, width)), (0, 2, 1, 3))


def _packed(e: OnnxEmitter, x: Tensor) -> Tensor:
    """Write ``[B, N, H * D]`` for ``[B, H, N, D]``."""
    batch, heads, length, width = x.shape
    return e.reshape(e.permute(x, (0, 2, 1, 3)), (batch, length, heads * width))


def _asked_for(e: OnnxEmitter, opset: int) -> bool:
    """Whether the target names an opset that has the operator: few runtimes have the newest ones."""
    return e.target.startswith("onnx:") and e.opset >= opset


def _activation(since: int, op: str, e: OnnxEmitter, operands: Operands, settings: Settings) -> Tensor | None:
    (x,) = operands
    return None if x is None or e.opset < since else e.node(op, [x], x.shape, x.dtype)


def _convolution(e: OnnxEmitter, operands: Operands, settings: Settings) -> Tensor | None:
    x, weight, bias = operands
    if x is None or weight is None:
        return None
    pads = [n for end in zip(*settings["padding"], strict=True) for n in end]
    inputs = [x, weight, *([bias] if bias is not None else [])]
    return e.node(
        "Conv",
        inputs,
        settings["shape"],
        x.dtype,
        strides=list(settings["strides"]),
        pads=pads,
        dilations=list(settings["dilations"]),
        group=settings["groups"],
    )


def _reduction(op: str, e: OnnxEmitter, operands: Operands, settings: Settings) -> Tensor | None:
    (x,) = operands
    assert x is not None
    axes = list(settings["axes"])
    if e.opset >= 18:
        return e.node(op, [x, e.integers(axes)], settings["shape"], x.dtype, keepdims=1)
    return e.node(op, [x], settings["shape"], x.dtype, axes=axes, keepdims=1)


def _ones(e: OnnxEmitter, x: Tensor) -> Tensor:
    return e.expand(e.constant(1.0, x.dtype), x.shape[-1:])


_OPERATORS: dict[str, Callable[[OnnxEmitter, Operands, Settings], Tensor | None]] = {
    "causal_sums": _causal_sums,
    "convolution": _convolution,
    "gelu": _gelu,
    "group_norm": _group_norm,
    "hard_swish": partial(_activation, 14, "HardSwish"),
    "layer_norm": _layer_norm,
    "max": partial(_reduction, "ReduceMax"),
    "mean": partial(_reduction, "ReduceMean"),
    "mish": partial(_activation, 18, "Mish"),
    "modified_attention": modified_attention,
    "rms_norm": _rms_norm,
    "rotary": _rotary,
    "silu": _silu,
    "sliding_attention": _sliding_attention,
}
