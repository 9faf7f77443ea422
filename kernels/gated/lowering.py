"""How gated attention is emitted: one fused attention call, and a gate on its result."""

from __future__ import annotations

from dataclasses import replace

from rewriter.algebra.sizes import ONE
from rewriter.forms import Canonical
from rewriter.kernels.gated.weights import GateWeights
from rewriter.kernels.softmax.lowering import emit_dense, emit_softmax_kernel
from rewriter.lower.emitter import Emitter, Handle, KernelEmitter

__all__ = ["emit_gated", "emit_gated_kernel"]


def emit_gated(e: Emitter, a: Canonical, gate: GateWeights) -> Handle:
    """Emit attention times the gate of each head and query, ``[B, H, I, E]``; 0 where a query sees no key."""
    return e.map("mul", emit_dense(e, _guarded(a)), _opening(e, a, gate))


def emit_gated_kernel(e: KernelEmitter, a: Canonical, gate: GateWeights) -> Handle:
    """Emit the same with the kernel of softmax attention."""
    return e.map("mul", emit_softmax_kernel(e, _guarded(a)), _opening(e, a, gate))


def _guarded(a: Canonical) -> Canonical:
    return a if a.empty_row == "never" else replace(a, empty_row="zero")


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
