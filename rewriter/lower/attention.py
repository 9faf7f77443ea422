"""Attention in operations that every target has: what no fused operator of a target computes."""

from __future__ import annotations

import math
from collections.abc import Callable

from rewriter.algebra.prims import broadcast
from rewriter.algebra.sizes import ONE, Size
from rewriter.lower.emitter import Emitter, Handle
from rewriter.lower.errors import EmitError

__all__ = [
    "capped_and_masked",
    "group_size",
    "masked_causally",
    "spelled_out",
    "with_sinks",
    "zero_where_empty",
]


def group_size(e: Emitter, q: Handle, k: Handle) -> Size:
    """Return how many query heads read one key head.

    Raises
    ------
    EmitError
        If the key heads do not divide the query heads.
    """
    heads, groups = e.shape(q)[1], e.shape(k)[1]
    shared = heads.divide(groups)
    if shared is None:
        raise EmitError(f"{heads} query heads are no multiple of {groups} key heads.")
    return shared


def capped_and_masked(e: Emitter, scores: Handle, softcap: float | None, mask: Handle | None) -> Handle:
    """Emit what a soft cap and a mask ``[I, J]`` make of scaled scores ``[B, H, I, J]``."""
    if softcap is not None:
        cap = e.constant(softcap, e.dtype(scores))
        scores = e.map("mul", e.map("tanh", e.map("div", scores, cap)), cap)
    return scores if mask is None else e.map("add", scores, mask)


def masked_causally(e: Emitter, q: Handle, k: Handle, bias: Handle | None) -> Handle:
    """Emit the bias, or 0 for want of one, where key ``j <= i``, else -inf: rank 4."""
    queries, keys, dtype = e.shape(q)[2], e.shape(k)[2], e.dtype(q)
    rows = e.reshape(e.iota(queries), (ONE, ONE, queries, ONE))
    visible = e.map("le", e.reshape(e.iota(keys), (ONE, ONE, ONE, keys)), rows)
    seen = e.constant(0.0, dtype) if bias is None else bias
    return e.map("where", visible, seen, e.constant(-math.inf, dtype))


def with_sinks(
    e: Emitter, k: Handle, v: Handle, bias: Handle | None, sink: Handle
) -> tuple[Handle, Handle, Handle]:
    """Emit sinks as further keys; return keys, values and bias of attention that has no sink.

    Their features are zero, so that their score is zero, soft-capped or not, before the bias adds the
    logit; their values are zero, so that they only take weight.
    """
    count, keys = e.shape(sink)[3], e.shape(k)[2]
    if bias is None:
        bias = e.pad(sink, 3, keys, 0)
    else:
        lead = broadcast(e.shape(bias)[:3], e.shape(sink)[:3])
        parts = [(bias, keys), (sink, count)]
        bias = e.concat([_expanded(e, x, (*lead, size)) for x, size in parts], 3)
    return e.pad(k, 2, 0, count), e.pad(v, 2, 0, count), bias


def spelled_out(
    e: Emitter,
    q: Handle,
    k: Handle,
    v: Handle,
    scale: float,
    bias: Handle | None,
    softcap: float | None,
    weigh: Callable[[Handle], Handle] | None = None,
) -> Handle:
    """Emit two products with a softmax between them; a row that is all -inf gives what the softmax gives.

    The query heads that share a key head are more rows of one product. ``weigh`` makes the weights of the
    scores, over the last axis, if it is not the softmax alone.
    """
    batch, heads, queries, width = e.shape(q)
    groups, keys = e.shape(k)[1:3]
    rows = queries * group_size(e, q, k)
    factor = scale if softcap is None else scale / softcap
    if factor != 1.0:
        q = _scaled(e, q, factor)
    scores = e.matmul(e.reshape(q, (batch, groups, rows, width)), e.permute(k, (0, 1, 3, 2)))
    if softcap is not None:
        scores = e.map("mul", e.map("tanh", scores), e.constant(softcap, e.dtype(q)))
    if bias is not None:
        scores = e.map("add", e.reshape(scores, (batch, heads, queries, keys)), bias)
    weights = e.softmax(scores, 3) if weigh is None else weigh(scores)
    weights = e.reshape(weights, (batch, groups, rows, keys))
    return e.reshape(e.matmul(weights, v), (batch, heads, queries, e.shape(v)[3]))


def zero_where_empty(e: Emitter, out: Handle, bias: Handle | None) -> Handle:
    """Emit 0 for queries that the bias shows no key. The scores are not read: they have more heads."""
    if bias is None:
        return out
    empty = e.map("eq", e.reduce("max", bias, 3), e.constant(-math.inf, e.dtype(bias)))
    return e.map("where", empty, e.constant(0.0, e.dtype(out)), out)


def _scaled(e: Emitter, x: Handle, factor: float) -> Handle:
    number = e.constant(factor, e.dtype(x))
    if e.dtype(x) == "float64":
        # ONNX Runtime moves a factor that is one number into the product, where it is rounded to float32
        number = e.expand(number, e.shape(x)[-1:] if e.shape(x)[-1] != ONE else e.shape(x)[-2:])
    return e.map("mul", x, number)


def _expanded(e: Emitter, x: Handle, shape: tuple[Size, ...]) -> Handle:
    return x if e.shape(x) == shape else e.expand(x, shape)
