"""ONNX's fused attention operators, taken apart into primitive forms.

The scores are ``scale * (q @ k.T)``, softcapped, plus a float mask, and -inf where a boolean mask, causality,
a window or padding hides a key. A row without any visible key gives 0 in the standard operator: the guard
that its definition has is spelled ``where(isnan(p), 0, p)``. ONNX Runtime's own operators have none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def _attention(call: Call) -> Result:
    q, k, v, mask = call[0], call[1], call[2], call.get(3)
    packed = len(q.shape) == 3
    if packed:
        heads = (call.attribute("q_num_heads"), *(call.attribute("kv_num_heads"),) * 2)
        split = [_split_heads(x, n) for x, n in zip((q, k, v), heads, strict=True)]
        if split[0] is None or split[1] is None or split[2] is None:
            return None
        q, k, v = split[0], split[1], split[2]
    k, v, past = _cached(call, k, v, call.get(4), call.get(5))
    scale, group = _scale(q, call.attribute("scale")), q.shape[1].divide(k.shape[1])
    if scale is None or group is None:
        return None
    keys, values = k, v
    if mask is not None and not any(call.outputs[3:4]):
        keys, values = (_covered(x, mask.shape[-1]) for x in (k, v))
    visible = _visible(call, q.shape[2], keys.shape[2], past)
    if mask is not None:
        mask = _padded(mask, keys.shape[2])
        if mask.dtype == "bool":
            visible, mask = [mask, *visible], None
    softcap = call.attribute("softcap", 0.0)
    steps = _Steps(call, output=3, shown=call.attribute("qk_matmul_output_mode", 0))
    keys, values = _repeated(keys, group), _repeated(values, group)
    result = _attend(q, keys, values, scale, softcap, mask, visible, steps)
    return [_merged(result) if packed else result, k, v, steps.held]


def _visible(call: Call, queries: Size, keys: Size, past: Size) -> list[Prim]:
    """Return the boolean masks that ``Attention``'s attributes and key counts amount to."""
    masks: list[Prim] = []
    before, counts, filled = past, None, call.get(6)
    if filled is not None:
        counts = reshape(filled, [*filled.shape, ONE, ONE, ONE])
        masks.append(pointwise("lt", iota(keys), counts))
        if call.present(4):
            counts = None
        else:
            before = -queries
    if call.attribute("is_causal", 0):
        masks.append(_band(queries, keys, before, counts, "le", 0))
    if (left := call.attribute("left_window_size", -1)) >= 0:
        masks.append(_band(queries, keys, before, counts, "ge", -left))
    if (right := call.attribute("right_window_size", -1)) >= 0:
        masks.append(_band(queries, keys, before, counts, "le", right))
    return masks


def _multi_head_attention(call: Call) -> Result:
    q, k, v, bias = call[0], call.get(1), call.get(2), call.get(3)
    exotic = any(x is not None for x in call.inputs[8:])
    if exotic or k is None or v is None or len(q.shape) != 3:
        return None
    if bias is not None:
        if len(k.shape) != 3 or len(v.shape) != 3:
            return None
        q, k, v = _add_slices(bias, q, k, v)
    past = (call.get(6), call.get(7))
    return _runtime_attention(call, (q, k, v), padding=call.get(4), bias=call.get(5), past=past)


def _packed_attention(call: Call) -> Result:
    """ONNX Runtime's ``Attention``: the projections of query, key and value are inside."""
    x, weight, bias = call[0], call[1], call.get(2)
    outside = call.present(4) or any(y is not None for y in call.inputs[6:]) or any(call.outputs[1:])
    if outside or call.attribute("do_rotary", 0) or len(x.shape) != 3:
        return None
    given = call.attribute("qkv_hidden_sizes")
    third = weight.shape[1].divide(3)
    widths = [Size.of(n) for n in given] if given else [third] * 3 if third is not None else None
    if widths is None:
        return None
    projected = matmul(x, weight)
    parts, start = [], ZERO
    for width in widths:
        parts.append(slice_(projected, 2, start, width))
        start += width
    q, k, v = parts
    if bias is not None:
        q, k, v = _add_slices(bias, q, k, v)
    return _runtime_attention(call, (q, k, v), padding=call.get(3), bias=call.get(5), past=(None, None))


def _add_slices(bias: Prim, *xs: Prim) -> list[Prim]:
    """Return each operand plus its part of the biases, which lie one after the other."""
    start, biased = ZERO, []
    for x in xs:
        biased.append(pointwise("add", x, slice_(bias, 0, start, x.shape[2]), dtype=x.dtype))
        start += x.shape[2]
    return biased


def _runtime_attention(
    call: Call,
    qkv: tuple[Prim, Prim, Prim],
    padding: Prim | None,
    bias: Prim | None,
    past: tuple[Prim | None, Prim | None],
) -> Result:
    """Return ONNX Runtime's attention: padding is a large negative bias, and empty rows are not guarded."""
    heads = call.attribute("num_heads")
    split = [x if len(x.shape) == 4 else _split_heads(x, heads) for x in qkv]
    if split[0] is None or split[1] is None or split[2] is None:
        return None
    q, k, v = split[0], split[1], split[2]
    k, v, before = _cached(call, k, v, *past)
    scale = _scale(q, call.attribute("scale", 0.0) or None)
    if padding is not None:
        padding = _padding_bias(
            padding, q.shape[0], k.shape[2], call.attribute("mask_filter_value", -1e4), q.dtype
        )
        if padding is None:
            return None
        bias = padding if bias is None else pointwise("add", bias, padding, dtype=q.dtype)
    if scale is None:
        return None
    visible = []
    if call.attribute("unidirectional", 0):
        visible.append(_band(q.shape[2], k.shape[2], before, None, "le", 0))
    steps = _Steps(call, output=3, shown=0)
    result = _attend(q, k, v, scale, 0.0, bias, visible, steps, guard=False)
    return [_merged(result), k, v, steps.held]


def _padding_bias(mask: Prim, batch: Size, keys: Size, hidden: float, dtype: str | None) -> Prim | None:
    """Return what a mask of integers (or the counts of valid keys) adds to the scores."""
    shape = mask.shape
    if len(shape) == 1 and shape[0] == batch:
        seen = pointwise("lt", iota(keys), reshape(mask, [batch, ONE, ONE, ONE]))
    elif len(shape) in (2, 3):
        rows = [shape[0], ONE, ONE if len(shape) == 2 else shape[1], shape[-1]]
        seen = pointwise("gt", reshape(mask, rows), constant(0, mask.dtype))
    else:
        return None
    return pointwise("where", seen, constant(0.0, dtype), constant(float(hidden), dtype))


class _Steps:
    """Gives one step between scores and weights the name of the output that shows it.

    What reads the step must read the named tensor: an operand that the graph holds can be asked for.
    """

    def __init__(self, call: Call, output: int, shown: int) -> None:
        self.held: Prim | None = None
        self._name = call.outputs[output] if len(call.outputs) > output else ""
        self._shown = shown

    def __call__(self, at: int, step: Prim) -> Prim:
        if at == self._shown and self._name:
            step = self.held = step.named(self._name)
        return step


def _attend(
    q: Prim,
    k: Prim,
    v: Prim,
    scale: float,
    softcap: float,
    bias: Prim | None,
    visible: Sequence[Prim],
    steps: _Steps,
    guard: bool = True,
) -> Prim:
    scores = steps(0, pointwise("mul", matmul(q, swap(k, 2, 3)), constant(float(scale), q.dtype)))
    if softcap:
        inner = pointwise("tanh", pointwise("mul", scores, constant(1.0 / softcap, q.dtype)))
        scores = pointwise("mul", inner, constant(float(softcap), q.dtype))
    scores = steps(1, scores)
    if bias is not None:
        scores = pointwise("add", scores, bias, dtype=q.dtype)
    if visible:
        hidden = constant(-np.inf, q.dtype)
        scores = pointwise("where", fold(partial(pointwise, "and"), visible), scores, hidden)
    weights = softmax(steps(2, scores), 3)
    if guard and (bias is not None or visible):
        weights = pointwise("where", pointwise("isnan", weights), constant(0.0, q.dtype), weights)
    return matmul(steps(3, weights), v)


def _scale(q: Prim, stated: float | None) -> float | None:
    """Return the factor of the scores, None where it depends on a dynamic size."""
    if stated is not None:
        return stated
    return 1 / math.sqrt(int(q.shape[3])) if q.shape[3].static else None


def _cached(
    call: Call, k: Prim, v: Prim, past_key: Prim | None, past_value: Prim | None
) -> tuple[Prim, Prim, Size]:
    """Return keys and values with those of earlier calls before them, and how many these are.

    They are named where the node writes them (outputs 1 and 2).
    """
    past = ZERO
    if past_key is not None and past_value is not None:
        k, v, past = concat([past_key, k], 2), concat([past_value, v], 2), past_key.shape[2]
    names = (*call.outputs[1:3], "", "")
    return k.named(names[0]) if names[0] else k, v.named(names[1]) if names[1] else v, past


def _merged(x: Prim) -> Prim:
    """Return ``[batch, heads, length, size]`` as ``[batch, length, heads * size]``."""
    rows = permute(x, (0, 2, 1, 3))
    return reshape(rows, [*rows.shape[:2], rows.shape[2] * rows.shape[3]])


def _split_heads(x: Prim, heads: int | None) -> Prim | None:
    """Return ``[batch, length, heads * size]`` as ``[batch, heads, length, size]``."""
    size = None if heads is None else x.shape[2].divide(heads)
    return (
        None
        if heads is None or size is None
        else permute(reshape(x, [*x.shape[:2], heads, size]), (0, 2, 1, 3))
    )


def _repeated(x: Prim, group: Size) -> Prim:
    """Return keys or values with each head repeated for the query heads that share it."""
    if group == ONE:
        return x
    batch, heads, length, size = x.shape
    return reshape(
        expand(unsqueeze(x, 2), [batch, heads, group, length, size]), [batch, heads * group, length, size]
    )


def _covered(x: Prim, width: Size) -> Prim:
    """Return the keys or values that a mask of that width covers: those past its end are hidden."""
    return slice_(x, 2, ZERO, width) if _is_short(width, x.shape[2]) else x


def _is_short(width: Size, keys: Size) -> bool:
    return width != keys and width.static and (keys.static or width == ONE)


def _padded(mask: Prim, keys: Size) -> Prim:
    """Return a mask that covers every key; those past its end are hidden."""
    width = mask.shape[-1]
    if not _is_short(width, keys):
        return mask
    fill = constant(False) if mask.dtype == "bool" else constant(-np.inf, mask.dtype)
    return concat([mask, expand(fill, [*mask.shape[:-1], keys - width])], len(mask.shape) - 1)


def _band(queries: Size, keys: Size, before: Size, counts: Prim | None, fn: str, shift: int) -> Prim:
    """Return where key ``j`` compares with query ``i`` at ``j fn before + counts + i + shift``."""
    row = unsqueeze(iota(queries, start=before + shift), 1)
    return pointwise(fn, iota(keys), row if counts is None else pointwise("add", row, counts))


ATTENTION: dict[str, Handler] = {
    "Attention": _attention,
    "com.microsoft::Attention": _packed_attention,
    "com.microsoft::MultiHeadAttention": _multi_head_attention,
}
"""Translations by operator name."""
