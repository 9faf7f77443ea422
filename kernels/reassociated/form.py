"""The form ``reassociated``: attention without a softmax, its two products in the order that costs least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rewriter.forms import Canonical, Cost, Fidelity, Form
from rewriter.kernels.linear.features import Identity, Taylor
from rewriter.kernels.linear.form import sums_cost
from rewriter.kernels.linear.legality import why_no_sums
from rewriter.kernels.linear.lowering import Tokens, emit_sums, emit_wide, order_of, sizes_of

if TYPE_CHECKING:
    import torch

    from rewriter.kernels.softmax.definition import Operands
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.sites.site import AttentionSite

__all__ = ["Reassociated"]


@dataclass(frozen=True)
class Reassociated(Form):
    """``(q kᵀ) v`` or ``q (kᵀ v)``, equal where no softmax stands between the two. No parameters."""

    name: ClassVar[str] = "reassociated"
    summary: ClassVar[str] = "attention without a softmax, exactly, in the order of products that costs least"
    kinds: ClassVar[frozenset[str]] = frozenset({"linear-attention"})
    normalizers: ClassVar[frozenset[str]] = frozenset({"none", "sum"})

    def fidelity(self, site: AttentionSite) -> Fidelity:
        """Return `Fidelity.EXACT`: a matrix product is associative."""
        return Fidelity.EXACT

    def why_not(self, site: AttentionSite) -> str | None:
        """Return why the weights are more than products, or why another order would gain nothing, or None."""
        if site.formula.weights is not None or site.formula.scores is not None:
            return (
                f"{site.id}: between its two products stands a mask that is not causal, a decay or something"
                " added; they cannot be exchanged"
            )
        reason = why_no_sums(site)
        if reason is None and self._order(site) == self._given(site):
            return f"{site.id} is computed in the order that costs least already ({self._given(site)})"
        return reason

    def emit(self, e: Emitter, a: Canonical) -> Handle:
        """Emit the products; half precision is summed in float32."""
        return emit_wide(e, a, self._emit)

    def _emit(self, e: Emitter, a: Canonical) -> Handle:
        def times(x: Handle, number: float) -> Handle:
            return x if number == 1.0 else e.map("mul", x, e.constant(number, e.dtype(x)))

        # scale · s + shift = shift · (1 + scale / shift · s)
        q, share = times(a.q, a.scale / (a.shift or 1.0)), a.shift or 1.0
        tokens, width = Tokens(q, a.k, a.v, a.band, Taylor(1) if a.shift else Identity()), a.shape["E"]
        if a.normalizer == "none":
            return times(emit_sums(e, tokens), share)
        sums = emit_sums(e, tokens, counted=True)
        return e.map("div", e.slice(sums, 3, 0, width), e.slice(sums, 3, width, 1))

    def definition(self, x: Operands) -> torch.Tensor:
        """Compute the weights, then the values."""
        from rewriter.kernels.reassociated.definition import product_attention

        return product_attention(x)

    def cost(self, site: AttentionSite) -> Cost:
        """Return the cost of the cheapest order."""
        return sums_cost(site, site.qk_dim, site.facts.band)

    @staticmethod
    def _order(site: AttentionSite) -> str:
        return order_of(sizes_of(site, site.qk_dim), site.facts.band)

    @staticmethod
    def _given(site: AttentionSite) -> str:
        return "factored" if site.formula.values_first else "dense"
