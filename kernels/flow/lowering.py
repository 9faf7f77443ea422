"""How flow attention is emitted: four sums over tokens, then one of keys times values."""

from __future__ import annotations

from rewriter.algebra.sizes import ONE, Size
from rewriter.forms import Canonical
from rewriter.kernels.flow.constants import FLOW_EPSILON
from rewriter.kernels.linear.features import Identity
from rewriter.kernels.linear.lowering import Tokens, emit_sums
from rewriter.lower.emitter import Emitter, Handle
from rewriter.lower.heads import for_every_head

__all__ = ["emit_causal_flow", "emit_flow"]


def emit_flow(e: Emitter, a: Canonical) -> Handle:
    """Emit flow attention of operands in single precision or wider, ``[B, H, I, E]``."""
    shape = a.shape
    k, v = (for_every_head(e, x, shape["B"], shape["H"], shape["G"]) for x in (a.k, a.v))
    q, k = e.map("sigmoid", a.q), e.map("sigmoid", k)
    small = e.constant(FLOW_EPSILON, e.dtype(q))
    incoming = e.map("add", _flow(e, q, k), small)
    outgoing = e.map("add", _flow(e, k, q), small)
    received = _flow(e, q, e.map("div", k, outgoing))
    given = _flow(e, k, e.map("div", q, incoming))
    most, least = (e.constant(n, e.dtype(q)) for n in (1.0, -1.0))
    held = e.map("maximum", e.map("minimum", given, most), least)
    competition = e.map("mul", e.softmax(held, 2), e.size(shape["J"], e.dtype(q)))
    sums = emit_sums(e, Tokens(q, k, e.map("mul", v, competition), None, Identity()))
    allocation = e.map("sigmoid", _per(e, received, shape["I"], shape["J"]))
    return e.map("mul", e.map("div", sums, incoming), allocation)


def emit_causal_flow(e: Emitter, a: Canonical) -> Handle:
    """Emit flows from earlier tokens, in single precision or wider, ``[B, H, I, E]``; each sum in chunks."""
    shape, dtype = a.shape, e.dtype(a.q)
    k, v = (for_every_head(e, x, shape["B"], shape["H"], shape["G"]) for x in (a.k, a.v))
    q, k = e.map("sigmoid", a.q), e.map("sigmoid", k)
    small = e.constant(FLOW_EPSILON, dtype)
    one = e.expand(e.constant(1.0, dtype), (shape["B"], shape["H"], shape["I"], ONE))
    count = e.map("cast", e.map("add", e.iota(shape["I"]), e.constant(1, "int64")), dtype=dtype)
    count = e.reshape(count, (shape["I"], ONE))

    def mean(x: Handle, others: Handle, values: Handle) -> Handle:
        """Emit the mean of ``(x_i · others_j) values_j`` over ``j <= i``."""
        return e.map("div", emit_sums(e, Tokens(x, others, values, a.band, Identity())), count)

    incoming = e.map("add", mean(q, k, one), small)
    outgoing = e.map("add", mean(k, q, one), small)
    received = mean(q, e.map("div", k, outgoing), one)
    given = mean(k, e.map("div", q, incoming), one)
    most, least = (e.constant(n, dtype) for n in (1.0, -1.0))
    offer = e.map("exp", e.map("maximum", e.map("minimum", given, most), least))
    competition = e.map("div", offer, mean(one, offer, one))
    result = mean(e.map("div", q, incoming), k, e.map("mul", v, competition))
    return e.map("mul", result, e.map("sigmoid", received))


def _flow(e: Emitter, x: Handle, others: Handle) -> Handle:
    """Emit the product of each token with the sum of the others, ``[B, H, N, 1]``."""
    return e.matmul(x, e.permute(e.reduce("sum", others, 2), (0, 1, 3, 2)))


def _per(e: Emitter, x: Handle, count: Size, by: Size) -> Handle:
    if count == by:
        return x
    dtype = e.dtype(x)
    return e.map("mul", x, e.map("div", e.size(count, dtype), e.size(by, dtype)))
