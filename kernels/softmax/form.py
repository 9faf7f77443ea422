"""The form ``softmax``: what is already computed, by one fused operator."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from rewriter.algebra.sizes import ZERO, Size
from rewriter.forms import Canonical, Cost, Fidelity, Form
from rewriter.kernels.softmax.lowering import emit_dense, emit_softmax_kernel
from rewriter.kernels.softmax.time import attention_time
from rewriter.sites.site import Band, Trait

if TYPE_CHECKING:
    import torch

    from rewriter.kernels.softmax.definition import Operands
    from rewriter.lower.emitter import Emitter, Handle, KernelEmitter
    from rewriter.sites.site import AttentionSite

__all__ = ["Softmax", "dense_cost"]

BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Softmax(Form):
    """Softmax attention of every query to every key that the site's own mask lets it see. No parameters."""

    name: ClassVar[str] = "softmax"
    summary: ClassVar[str] = "exact softmax attention by the best fused operator of the target"
    kinds: ClassVar[frozenset[str]] = frozenset(
        {"attention", "latent-attention", "pooling", "channel-attention"}
    )
    traits: ClassVar[frozenset[Trait]] = frozenset({"softcap", "sink"})

    def fidelity(self, site: AttentionSite) -> Fidelity:
        """Return `Fidelity.EXACT`: it is the site itself."""
        return Fidelity.EXACT

    def emit(self, e: Emitter, a: Canonical) -> Handle:
        """Emit one fused call."""
        return emit_dense(e, a)

    def emit_kernel(self, e: KernelEmitter, a: Canonical) -> Handle:
        """Emit one call of the fused kernel."""
        return emit_softmax_kernel(e, a)

    def definition(self, x: Operands) -> torch.Tensor:
        """Compute it densely."""
        from rewriter.kernels.softmax.definition import softmax_attention

        return softmax_attention(x)

    def cost(self, site: AttentionSite) -> Cost:
        """Return the cost of every score, in one pass."""
        cost = dense_cost(site, site.keys)
        if site.facts.band != Band(ZERO, None, 0):
            return cost
        width = site.qk_dim + site.v_dim
        causal = attention_time(site.batch * site.heads, site.queries, site.keys, width, causal=True)
        return replace(cost, time=causal)


def dense_cost(site: AttentionSite, keys: Size) -> Cost:
    """Return what softmax attention costs in which each query sees ``keys`` keys."""
    scores = site.batch * site.heads * site.queries * keys
    width = BYTES.get(site.dtype, 4)
    read = site.batch * site.heads * site.queries * (
        site.qk_dim + site.v_dim
    ) + site.batch * site.kv_heads * keys * (site.qk_dim + site.v_dim)
    time = attention_time(site.batch * site.heads, site.queries, keys, site.qk_dim + site.v_dim)
    return Cost(flops=2 * scores * (site.qk_dim + site.v_dim), bytes=width * read, passes=1, time=time)
