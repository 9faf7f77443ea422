"""How attention of merged tokens is emitted."""

from __future__ import annotations

from dataclasses import replace

from rewriter.algebra.sizes import ONE, Size
from rewriter.forms import Canonical
from rewriter.kernels.merge.definition import LEAST
from rewriter.kernels.merge.matching import Sets, emit_match, emit_merge, emit_place, emit_take
from rewriter.kernels.softmax.lowering import emit_dense
from rewriter.lower.emitter import Emitter, Handle

__all__ = ["emit_counted", "emit_merged", "over_heads"]


def emit_merged(e: Emitter, a: Canonical, sets: Sets, of: str) -> Handle:
    """Emit attention of merged queries to merged keys, as far as ``of`` names them; ``[B, H, I, E]``.

    The bias is the same for all heads and queries: a key counts ``exp(bias)``.
    """
    batch = a.shape["B"]
    # of queries that are no tokens with keys, none is hidden
    hidden = a.bias is not None and (of != "q" or a.shape["I"] == a.shape["J"])
    if a.bias is not None:
        a = replace(a, empty_row="zero")
    counts = e.expand(e.constant(1.0, e.dtype(a.q)), (batch, a.shape["I" if of == "q" else "J"], ONE))
    if hidden:
        counts, top = _counts(e, a)
        if of != "q":
            a = replace(a, bias=None if a.sink is None else top)
    traits = [over_heads(e, x) for name, x in (("k", a.k), ("q", a.q)) if name in of]
    matched = emit_match(e, traits, sets, counts if hidden else None, hidden)
    operands = {name: x for name, x in (("k", a.k), ("v", a.v), ("q", a.q)) if name in of}
    parts = [_token_major(e, x) for x in operands.values()]
    joined = parts[0] if len(parts) == 1 else e.concat(parts, 2)
    mean, size = emit_merge(e, joined, counts, matched, sets, hidden)
    few, begin = {"k": a.k, "v": a.v, "q": a.q}, Size()
    for (name, x), part in zip(operands.items(), parts, strict=True):
        few[name] = _head_major(e, e.slice(mean, 2, begin, e.shape(part)[2]), e.shape(x))
        begin = begin + e.shape(part)[2]
    shape = {**a.shape, "I": e.shape(few["q"])[2], "J": e.shape(few["k"])[2]}
    b = replace(a, **few, shape=shape)
    result = emit_dense(e, b) if of == "q" else emit_counted(e, b, size)
    if "q" not in of:
        return result
    rows = emit_take(e, _token_major(e, result), emit_place(e, matched, sets))
    return _head_major(e, rows, (batch, a.shape["H"], a.shape["I"], a.shape["E"]))


def _counts(e: Emitter, a: Canonical) -> tuple[Handle, Handle]:
    """Emit how often each key counts by the bias, ``[B, J, 1]``, and its logarithm where that is 1."""
    batch, keys, dtype = a.shape["B"], a.shape["J"], e.dtype(a.bias)
    top = e.map("maximum", e.reduce("max", a.bias, 3), e.constant(0.0, dtype))
    counts = e.map("exp", e.map("sub", a.bias, top))
    none = e.constant(0.0, dtype)
    counts = e.map("where", e.map("lt", counts, e.constant(LEAST, dtype)), none, counts)
    return e.reshape(e.expand(counts, (batch, ONE, ONE, keys)), (batch, keys, ONE)), top


def emit_counted(e: Emitter, a: Canonical, size: Handle) -> Handle:
    """Emit attention to keys each of which counts ``size`` times, ``[B, J, 1]``; ``[B, H, I, E]``."""
    batch, keys, _ = e.shape(size)
    often = e.reshape(e.map("log", size), (batch, ONE, ONE, keys))
    return emit_dense(e, replace(a, bias=often if a.bias is None else e.map("add", a.bias, often)))


def over_heads(e: Emitter, x: Handle) -> Handle:
    """Emit the sum of keys or queries over the heads, ``[B, J, D]``: what tokens are compared by.

    In single precision at least: which tokens are the nearest hangs on every digit.
    """
    batch, heads, tokens, width = e.shape(x)
    if e.dtype(x) in ("float16", "bfloat16"):
        x = e.map("cast", x, dtype="float32")
    return e.reshape(x if heads == ONE else e.reduce("sum", x, 1), (batch, tokens, width))


def _token_major(e: Emitter, x: Handle) -> Handle:
    batch, heads, tokens, width = e.shape(x)
    return e.reshape(e.permute(x, (0, 2, 1, 3)), (batch, tokens, heads * width))


def _head_major(e: Emitter, x: Handle, like: tuple[Size, ...]) -> Handle:
    batch, heads, _, width = like
    tokens = e.shape(x)[1]
    return e.permute(e.reshape(x, (batch, tokens, heads, width)), (0, 2, 1, 3))
