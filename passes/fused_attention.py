"""Softmax attention that is spelled out becomes one operator.

    before   softmax(q · kᵀ · scale + mask) · v, product by product
    after    attention(q, k, v), which holds no scores

The form `softmax`, at every site where it is a gain. ONNX Runtime fuses the products by itself, or computes
them as fast.
Refused: scores or weights that are read elsewhere, too; all that the form refuses. What is one operator
already is passed over.

Source: Dao et al.: FlashAttention, 2022, algorithm 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rewriter.rules.form_rule import FormRule, is_spelled_out

if TYPE_CHECKING:
    from rewriter.forms import Form
    from rewriter.program.program import Program
    from rewriter.sites.site import AttentionSite

__all__ = ["FusedAttention"]


class FusedAttention(FormRule):
    """Attention as one operator. Exact."""

    name = "fused-attention"
    looks_for: ClassVar[str] = "softmax(q · kᵀ · scale + mask) · v"
    pays: ClassVar[frozenset[str]] = frozenset({"torch", "triton"})

    def form(self) -> Form:
        """Return softmax attention."""
        from rewriter.kernels.softmax.form import Softmax

        return Softmax()

    def fits(self, program: Program, site: AttentionSite) -> bool:
        """Whether the graph holds the scores."""
        return is_spelled_out(program, site)

    def gain(self, site: AttentionSite) -> str:
        """Return how large the scores are."""
        return f"1 operator for {len(site.region)}: {site.queries} by {site.keys} scores are not held"
