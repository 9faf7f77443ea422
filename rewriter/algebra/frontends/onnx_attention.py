"""ONNX's fused attention operators, taken apart into primitive forms.

The scores are ``scale * (q @ k.T)``, softcapped, plus a float mask, and -inf where a boolean mask, causality,
a window or padding hides a key. A row without any visible key gives 0: the guard that the operator's
definition has is spelled ``where(isnan(p), 0, p)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from functools import reduce as fold

import numpy as np

from rewriter.algebra.frontends.onnx_scope import Call, Handler, Result
from rewriter.algebra.prims import (
    Prim,
    concat,
    constant,
    expand,
    iota,
    matmul,
    permute,
    pointwise,
    reshape,
    slice_,
    softmax,
    swap,
    unsqueeze,
)
from rewriter.algebra.sizes import ONE, ZERO, Size

__all__ = ["ATTENTION"]


@dataclass(frozen=True, slots=True)
class _Chain:
    """The steps of one attention that some output of an operator may show."""

    scores: Prim
    capped: Prim
    biased: Prim
    weights: Prim
    result: Prim


def _attention(call: Call) -> Result:
    q, k, v = call[0], call[1], call[2]
    mask, past_key, past_value, filled = (call.get(at) for at in range(3, 7))
    packed = len(q.shape) == 3
    if packed:
        heads, kv_heads = call.attribute("q_num_heads"), call.attribute("kv_num_heads")
        if not heads or not kv_heads:
            return None
        split = (_split_heads(q, heads), _split_heads(k, kv_heads), _split_heads(v, kv_heads))
        if split[0] is None or split[1] is None or split[2] is None:
            return None
        q, k, v = split[0], split[1], split[2]
    past = ZERO
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        k, v = concat([past_key, k], 2), concat([past_value, v], 2)
    scale = call.attribute("scale")
    if scale is None:
        if not q.shape[3].static:
            return None
        scale = 1 / math.sqrt(int(q.shape[3]))
    group = q.shape[1].divide(k.shape[1])
    if group is None:
        return None
    queries, keys = q.shape[2], k.shape[2]
    visible: list[Prim] = []
    if mask is not None:
        mask = _padded(mask, keys)
        if mask.dtype == "bool":
            visible.append(mask)
            mask = None
    before, counts = past, None
    if filled is not None:
        counts = reshape(filled, [*filled.shape, ONE, ONE, ONE])
        before = past if past_key is not None else -queries
        visible.append(pointwise("lt", iota(keys), counts))
    band = partial(_band, queries, keys, before, counts if past_key is None else None)
    if call.attribute("is_causal", 0):
        visible.append(band("le", 0))
    if (left := call.attribute("left_window_size", -1)) >= 0:
        visible.append(band("ge", -left))
    if (right := call.attribute("right_window_size", -1)) >= 0:
        visible.append(band("le", right))
    chain = _attend(q, _repeated(k, group), _repeated(v, group), scale, call.attribute("softcap", 0.0), mask, visible)
    result = chain.result
    if packed:
        result = permute(result, (0, 2, 1, 3))
        result = reshape(result, [*result.shape[:2], result.shape[2] * result.shape[3]])
    shown = (chain.scores, chain.capped, chain.biased, chain.weights)
    return [result, k, v, shown[call.attribute("qk_matmul_output_mode", 0)]]


def _multi_head_attention(call: Call) -> Result:
    q, k, v, bias = call[0], call.get(1), call.get(2), call.get(3)
    padding, attention_bias, past_key, past_value = (call.get(at) for at in range(4, 8))
    heads = call.attribute("num_heads")
    exotic = padding is not None or any(x is not None for x in call.inputs[8:])
    if exotic or k is None or v is None or len(q.shape) != 3 or not heads:
        return None
    if bias is not None:
        if len(k.shape) != 3 or len(v.shape) != 3:
            return None
        widths, start, biased = (q.shape[2], k.shape[2], v.shape[2]), ZERO, []
        for x, width in zip((q, k, v), widths, strict=True):
            biased.append(pointwise("add", x, slice_(bias, 0, start, width), dtype=x.dtype))
            start += width
        q, k, v = biased
    split = [x if len(x.shape) == 4 else _split_heads(x, heads) for x in (q, k, v)]
    if split[0] is None or split[1] is None or split[2] is None:
        return None
    q, k, v = split[0], split[1], split[2]
    past = ZERO
    if past_key is not None and past_value is not None:
        past = past_key.shape[2]
        k, v = concat([past_key, k], 2), concat([past_value, v], 2)
    scale = call.attribute("scale", 0.0)
    if not scale:
        if not q.shape[3].static:
            return None
        scale = 1 / math.sqrt(int(q.shape[3]))
    visible = []
    if call.attribute("unidirectional", 0):
        visible.append(_band(q.shape[2], k.shape[2], past, None, "le", 0))
    chain = _attend(q, k, v, scale, 0.0, attention_bias, visible)
    merged = permute(chain.result, (0, 2, 1, 3))
    return [reshape(merged, [*merged.shape[:2], merged.shape[2] * merged.shape[3]]), k, v]


def _attend(
    q: Prim, k: Prim, v: Prim, scale: float, softcap: float, bias: Prim | None, visible: Sequence[Prim]
) -> _Chain:
    scores = capped = pointwise("mul", matmul(q, swap(k, 2, 3)), constant(float(scale), q.dtype))
    if softcap:
        inner = pointwise("tanh", pointwise("mul", scores, constant(1.0 / softcap, q.dtype)))
        capped = pointwise("mul", inner, constant(float(softcap), q.dtype))
    biased = capped if bias is None else pointwise("add", capped, bias, dtype=q.dtype)
    if visible:
        hidden = constant(-np.inf, q.dtype)
        biased = pointwise("where", fold(partial(pointwise, "and"), visible), biased, hidden)
    weights = softmax(biased, 3)
    if bias is not None or visible:
        weights = pointwise("where", pointwise("isnan", weights), constant(0.0, q.dtype), weights)
    return _Chain(scores, capped, biased, weights, matmul(weights, v))


def _split_heads(x: Prim, heads: int) -> Prim | None:
    """Return ``[batch, length, heads * size]`` as ``[batch, heads, length, size]``."""
    size = x.shape[2].divide(heads)
    return None if size is None else permute(reshape(x, [*x.shape[:2], heads, size]), (0, 2, 1, 3))


def _repeated(x: Prim, group: Size) -> Prim:
    """Return keys or values with each head repeated for the query heads that share it."""
    if group == ONE:
        return x
    batch, heads, length, size = x.shape
    return reshape(expand(unsqueeze(x, 2), [batch, heads, group, length, size]), [batch, heads * group, length, size])


def _padded(mask: Prim, keys: Size) -> Prim:
    """Return a mask that covers every key; those past its end are hidden."""
    width = mask.shape[-1]
    if width == keys or not (width.static and (keys.static or width == ONE)):
        return mask
    fill = constant(False) if mask.dtype == "bool" else constant(-np.inf, mask.dtype)
    return concat([mask, expand(fill, [*mask.shape[:-1], keys - width])], len(mask.shape) - 1)


def _band(queries: Size, keys: Size, before: Size, counts: Prim | None, fn: str, shift: int) -> Prim:
    """Return where key ``j`` compares with query ``i`` at ``j fn before + counts + i + shift``."""
    row = unsqueeze(iota(queries, start=before + shift), 1)
    return pointwise(fn, iota(keys), row if counts is None else pointwise("add", row, counts))


ATTENTION: dict[str, Handler] = {
    "Attention": _attention,
    "com.microsoft::MultiHeadAttention": _multi_head_attention,
}
"""Translations by operator name."""
