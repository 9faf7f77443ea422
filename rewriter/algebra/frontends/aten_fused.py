"""The project's own fused operators, taken apart into primitive forms."""

from __future__ import annotations

import numpy as np

from rewriter.algebra.frontends.aten_attention import hidden, repeated
from rewriter.algebra.frontends.aten_scope import Call, Handler, Result
from rewriter.algebra.frontends.guards import guarded
from rewriter.algebra.prims import (
    Prim,
    concat,
    constant,
    expand,
    iota,
    matmul,
    pointwise,
    slice_,
    softmax,
    swap,
    unsqueeze,
)

__all__ = ["FUSED"]


def _softmax(call: Call) -> Result:
    """``torch.ops.rewriter.softmax``; its second result is for gradients and a leaf."""
    q, k, v = (call.tensor(at) for at in range(3))
    bias, sink = call.optional(3, "bias"), call.optional(4, "sink")
    k, v = repeated(k, q), repeated(v, q)
    scores = _times(matmul(q, swap(k, -2, -1)), float(call.kwargs["scale"]))
    cap = call.kwargs.get("softcap")
    if cap is not None:
        scores = _times(pointwise("tanh", _times(scores, 1 / cap)), cap)
    if bias is not None:
        scores = pointwise("add", scores, bias, dtype=q.dtype)
    scores = _in_band(call, scores)
    keys = scores.shape[-1]
    if sink is not None:
        beside = expand(sink, (*scores.shape[:-1], sink.shape[-1]))
        scores = concat([scores, beside], len(scores.shape) - 1)
    weights = softmax(scores, -1)
    if sink is not None:
        weights = slice_(weights, len(scores.shape) - 1, 0, keys)
    elif call.kwargs.get("empty_row", "never") == "zero":
        weights = guarded(weights)
    return [matmul(weights, v), None]


def _in_band(call: Call, scores: Prim) -> Prim:
    rows, columns = unsqueeze(iota(scores.shape[-2]), 1), iota(scores.shape[-1])
    offset = call.scope.number(call.size(call.kwargs.get("offset", 0)))
    ahead = pointwise("sub", columns, pointwise("add", rows, offset))
    for name, fn, sign in (("left", "ge", -1), ("right", "le", 1)):
        bound = call.kwargs.get(name)
        if bound is not None:
            limit = constant(np.asarray(sign * int(bound), dtype=np.int64))
            scores = hidden(pointwise(fn, ahead, limit), scores)
    return scores


def _times(x: Prim, factor: float) -> Prim:
    return x if factor == 1 else pointwise("mul", x, constant(np.asarray(factor), x.dtype))


FUSED: dict[str, Handler] = {"rewriter::softmax": _softmax}
"""Translations by qualified operator name."""
