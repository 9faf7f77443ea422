"""How softmax attention is emitted: one fused call, with whatever the band says as a flag or a mask."""

from __future__ import annotations

from typing import Any

from rewriter.algebra.sizes import ZERO
from rewriter.forms import Canonical
from rewriter.lower.band import emit_band
from rewriter.lower.emitter import Emitter, EmptyRow, Handle, KernelEmitter
from rewriter.sites.site import Band

__all__ = ["emit_dense", "emit_softmax_kernel", "kernel_operands", "kernel_settings"]


def emit_dense(e: Emitter, a: Canonical, empty_row: EmptyRow | None = None) -> Handle:
    """Emit attention of every query to every key that bias and band let it see; ``[B, H, I, E]``."""
    causal = a.band is not None and a.band == Band(ZERO, None, 0)
    bias = a.bias
    if a.band is not None and not causal:
        mask = emit_band(e, a.band, e.iota(a.shape["I"]), e.iota(a.shape["J"]), e.dtype(a.q))
        mask = e.reshape(mask, (1, 1, a.shape["I"], a.shape["J"]))
        bias = mask if bias is None else e.map("add", bias, mask)
    return e.attention(
        a.q,
        a.k,
        a.v,
        scale=a.scale,
        bias=bias,
        causal=causal,
        empty_row=a.empty_row if empty_row is None else empty_row,
        softcap=a.softcap,
        sink=a.sink,
    )


def emit_softmax_kernel(e: KernelEmitter, a: Canonical) -> Handle:
    """Emit one call of the fused kernel; ``[B, H, I, E]``."""
    shape = tuple(a.shape[letter] for letter in "BHIE")
    return e.kernel("softmax", kernel_operands(a), kernel_settings(a), shape)


def kernel_operands(a: Canonical) -> tuple[Handle | None, ...]:
    """Return q, k, v, bias and sink."""
    return (a.q, a.k, a.v, a.bias, a.sink)


def kernel_settings(a: Canonical) -> dict[str, Any]:
    """Return what the kernels of all forms with a softmax are told about scores and rows."""
    settings: dict[str, Any] = {"scale": a.scale, "softcap": a.softcap, "empty_row": a.empty_row}
    if a.band is not None:
        settings |= {"offset": a.band.offset, "left": a.band.left, "right": a.band.right}
    return settings
