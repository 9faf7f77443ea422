"""Attention without a softmax is multiplied in the order that takes fewer multiplications.

    before   (q · kᵀ) · v
    after    q · (kᵀ · v), or the other way round

The form `reassociated`, at every site where it is a gain: linear attention that is written with a matrix of
queries by keys, attention between image and text without a softmax. Divisors by query and causal masks move
along.
Refused: what is in the cheaper order already; weights that are read elsewhere, too; all that the form
refuses.

Source: Katharopoulos et al.: Transformers are RNNs, 2020, equation 6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rewriter.rules.counts import many
from rewriter.rules.form_rule import FormRule

if TYPE_CHECKING:
    from rewriter.forms import Form
    from rewriter.sites.site import AttentionSite

__all__ = ["Reassociation"]


class Reassociation(FormRule):
    """Products of attention in the cheaper order. Exact."""

    name = "reassociation"
    looks_for: ClassVar[str] = "(q · kᵀ) · v"

    def form(self) -> Form:
        """Return attention without a softmax, in the cheaper order."""
        from rewriter.kernels.reassociated.form import Reassociated

        return Reassociated()

    def gain(self, site: AttentionSite) -> str:
        """Return how many operations are left."""
        flops = self.form().cost(site).flops
        return f"{many(flops)} operations for {site.queries} queries and {site.keys} keys"
