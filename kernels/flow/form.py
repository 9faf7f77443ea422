"""The form ``flow``: what flows from keys to queries is conserved."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from rewriter.algebra.sizes import ZERO
from rewriter.forms import Canonical, Cost, Fidelity, Form
from rewriter.kernels.flow.lowering import emit_causal_flow, emit_flow
from rewriter.kernels.linear.form import sums_cost
from rewriter.kernels.linear.lowering import emit_wide

if TYPE_CHECKING:
    import torch

    from rewriter.kernels.softmax.definition import Operands
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.sites.site import AttentionSite, Band

__all__ = ["Flow"]


@dataclass(frozen=True)
class Flow(Form):
    """Flow attention: linear attention in which keys compete and queries are allocated. No parameters.

    It is another function than softmax attention: on a model that was trained with a softmax it is unusable
    as it is. It is for models that are to be trained or fitted with it.
    """

    name: ClassVar[str] = "flow"
    summary: ClassVar[str] = "linear attention with conserved flows, for models trained or fitted with it"
    kinds: ClassVar[frozenset[str]] = frozenset({"attention", "latent-attention"})
    rows_apart: ClassVar[bool] = False

    def fidelity(self, site: AttentionSite) -> Fidelity:
        """Return `Fidelity.TRAINING_FREE`: nothing is fitted, and nothing is exact."""
        return Fidelity.TRAINING_FREE

    def why_not(self, site: AttentionSite) -> str | None:
        """Return why what flows is not that of all tokens, or None."""
        band = site.facts.band
        if site.facts.dense or (band is not None and site.facts.only_band and self._up_to_now(site, band)):
            return None
        sums = "what flows out of a key is a sum over all queries"
        known = f"{site.id} is masked or biased ({site.facts.mask}); {sums}"
        if site.facts.by_keys:
            return f"{known}, and a mask of keys does not say which queries are padding"
        return f"{known}, or over those up to now, and not over those that this mask or bias lets see it"

    @staticmethod
    def _up_to_now(site: AttentionSite, band: Band) -> bool:
        """Whether each token sees itself and all before it."""
        return band.causal and band.left is None and band.offset == ZERO and site.queries == site.keys

    def adapt(self, a: Canonical) -> Canonical:
        """Take a causal mask that the bias holds for the band that it is proved to be."""
        return replace(a, band=a.implied, bias=None) if a.band is None else a

    def emit(self, e: Emitter, a: Canonical) -> Handle:
        """Emit the sums; half precision is summed in float32."""
        a = self.adapt(a)
        return emit_wide(e, a, emit_flow if a.band is None else emit_causal_flow)

    def definition(self, x: Operands) -> torch.Tensor:
        """Compute the flows."""
        from rewriter.kernels.flow.definition import causal_flow_attention, flow_attention

        return flow_attention(x) if x.band is None else causal_flow_attention(x)

    def cost(self, site: AttentionSite) -> Cost:
        """Return the cost of keys times values, and of that times queries."""
        return replace(sums_cost(site, site.qk_dim, site.facts.band, copies=5), passes=3)
