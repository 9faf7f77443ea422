"""Tokens that nobody reads are not computed: the last layer answers for the class token, or for the last one.

    before   norm(x + mlp(...attention(q, k, v)...))[:, 0]
    after    the same of q[:, 0] and x[:, 0], with all keys and values

The choice of tokens moves up through everything that treats them one by one (projections, norms, activations,
residual sums) to the queries of the attention, and stops where a value is read whole. Refused: a value all
tokens of which are an output, or are read by something else; attention whose scores or weights are read.

Source: Touvron et al.: Going deeper with Image Transformers, 2021, section 3 (attention of the class token).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rewriter.algebra.sizes import ZERO
from rewriter.rules.counts import many
from rewriter.rules.graph_rule import Change, Declined, GraphRule

if TYPE_CHECKING:
    from rewriter.demand.analysis import Reads
    from rewriter.program.program import Program

__all__ = ["UnreadQueries"]


class UnreadQueries(GraphRule):
    """Queries, and what follows them token by token, only where their results are read. Exact."""

    name = "unread-queries"
    looks_for: ClassVar[str] = "attention(q, k, v)[some queries]"

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change for all tokens that are read, if it saves products."""
        from rewriter.demand.analysis import reads
        from rewriter.demand.insertions import insertions
        from rewriter.forms import refusal
        from rewriter.kernels.softmax.form import Softmax

        sites = [site for site in program.sites if refusal(Softmax(), site) is None]
        found = reads(program.graph, program.prims(), sites)
        declined = [
            Declined(value, f"the places of {value} that are read are not chosen earlier: {reason}")
            for value, reason in found.whole.items()
        ]
        if found.saved == ZERO:
            return [], declined
        output = next(iter(found.selections))
        return [Change(output, tuple(insertions(program, found)), _gain(found))], declined


def _gain(found: Reads) -> str:
    attended = sum(hasattr(narrow.way, "site") for narrow in found.narrow.values())
    read = ", ".join(dict.fromkeys(str(n.demand.places) for n in found.narrow.values()))
    what = f"{attended} attention{'s' if attended != 1 else ''} and {len(found.narrow) - attended} operators"
    return f"{what} compute {read}: {many(found.saved)} multiplications fewer"
