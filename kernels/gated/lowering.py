"""How gated attention is emitted: one fused attention call, and a gate on its result."""

from __future__ import annotations

from rewriter.algebra.sizes import ONE
from rewriter.forms import Canonical
from rewriter.kernels.gated.weights import GateWeights
from rewriter.kernels.softmax.lowering import emit_dense
from rewriter.lower.emitter import Emitter, Handle

__all__ = ["emit_gated"]


def emit_gated(e: Emitter, a: Canonical, gate: GateWeights) -> Handle:
    """Emit attention times the gate of each head and query, ``[B, H, I, E]``; 0 where a query sees no key."""
    result = emit_dense(e, a, "never" if a.empty_row == "never" else "zero")
    return e.map("mul", result, _opening(e, a, gate))


def _opening(e: Emitter, a: Canonical, gate: GateWeights) -> Handle:
    """Emit the gate, which broadcasts to ``[B, H, I, 1]``."""
    dtype = e.dtype(a.q)
    level = e.constant(gate.bias, dtype)
    if gate.bias.ndim:
        level = e.reshape(level, (ONE, a.shape["H"], ONE, ONE))
    if gate.weight is not None:
        heads, features = gate.weight.shape
        weight = e.reshape(e.constant(gate.weight, dtype), (heads, features, 1))
        level = e.map("add", e.matmul(a.q, weight), level)
    return e.map("sigmoid", level)
