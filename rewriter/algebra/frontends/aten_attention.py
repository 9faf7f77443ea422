"""torch's fused attention operators, taken apart into primitive forms.

The scores are ``scale * (q @ k.T)`` plus a float mask, and -inf where a boolean mask or causality hides a
key. A row without any visible key gives 0, spelled ``where(isnan(p), 0, p)``.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from rewriter.algebra.frontends.aten_scope import Call, Handler, Result, is_node
from rewriter.algebra.frontends.guards import guarded
from rewriter.algebra.prims import (
    Prim,
    constant,
    expand,
    iota,
    matmul,
    pointwise,
    reshape,
    softmax,
    swap,
    unsqueeze,
)
from rewriter.algebra.sizes import ONE

__all__ = ["ATTENTION", "hidden", "repeated"]


def _attention(mask: int, dropout: int, causal: int, call: Call) -> Result:
    """The three numbers are the positions of those arguments; past the end they are given by name."""
    q, k, v = (call.tensor(at) for at in range(3))
    bias = call.optional(mask, "attn_mask")
    if call.arg(dropout, "dropout_p", 0.0):
        return None
    if call.kwargs.get("enable_gqa", False):
        k, v = repeated(k, q), repeated(v, q)
    scores = _scores(call, q, k)
    if call.arg(causal, "is_causal", False):
        rows, columns = unsqueeze(iota(q.shape[-2]), 1), iota(k.shape[-2])
        scores = hidden(pointwise("le", columns, rows), scores)
    if bias is not None:
        scores = (
            hidden(bias, scores) if bias.dtype == "bool" else pointwise("add", scores, bias, dtype=q.dtype)
        )
    weights = softmax(scores, -1)
    if bias is not None:
        weights = guarded(weights)
    return matmul(weights, v)


def _scores(call: Call, q: Prim, k: Prim) -> Prim:
    scale = call.kwargs.get("scale")
    scores = matmul(q, swap(k, -2, -1))
    if is_node(scale):
        return pointwise("mul", scores, call.of(scale), dtype=q.dtype)
    factor = 1 / math.sqrt(int(q.shape[-1])) if scale is None else float(scale)
    return scores if factor == 1 else pointwise("mul", scores, constant(np.asarray(factor), q.dtype))


def hidden(visible: Prim, scores: Prim) -> Prim:
    """Return scores that are -inf where a key is not visible."""
    return pointwise("where", visible, scores, constant(np.asarray(-np.inf), scores.dtype))


def repeated(x: Prim, q: Prim) -> Prim:
    """Return keys or values with each head repeated for the query heads that share it."""
    heads, group = x.shape[-3], q.shape[-3].divide(x.shape[-3])
    if group is None:
        raise ValueError(f"{q.shape[-3]} query heads do not share {heads} heads equally")
    if group == ONE:
        return x
    batch, (length, size) = x.shape[:-3], x.shape[-2:]
    wide = expand(unsqueeze(x, len(x.shape) - 2), [*batch, heads, group, length, size])
    return reshape(wide, [*batch, heads * group, length, size])


def _several(handler: Handler, call: Call) -> Result:
    """The operator has more results, for training, which are leaves."""
    found = handler(call)
    return [found, *(None,) * 8] if isinstance(found, Prim) else None


_BY_NAME = 99

_plain = partial(_attention, 3, 4, 5)

ATTENTION: dict[str, Handler] = {
    "scaled_dot_product_attention": _plain,
    "_scaled_dot_product_attention_math": partial(_several, _plain),
    "_scaled_dot_product_flash_attention": partial(_several, partial(_attention, _BY_NAME, 3, 4)),
    "_scaled_dot_product_flash_attention_for_cpu": partial(_several, partial(_attention, _BY_NAME, 3, 4)),
    "_scaled_dot_product_efficient_attention": partial(_several, partial(_attention, 3, 5, 6)),
    "_scaled_dot_product_cudnn_attention": partial(_several, partial(_attention, 3, 5, 6)),
    "_scaled_dot_product_fused_attention_overrideable": partial(_several, partial(_attention, 3, 4, 5)),
}
"""Translations by operator name."""
