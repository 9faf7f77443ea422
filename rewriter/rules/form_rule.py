"""Rules that are a form, at every site where it is a gain."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rewriter.algebra.prims import Einsum, Reduce
from rewriter.rules.graph_rule import Change, Declined, GraphRule

if TYPE_CHECKING:
    from rewriter.forms import Form
    from rewriter.program.program import Program
    from rewriter.sites.site import AttentionSite

__all__ = ["FormRule", "is_spelled_out"]


class FormRule(GraphRule):
    """An exact form for all sites of its kinds. It is verified as forms are, site by site."""

    @abstractmethod
    def form(self) -> Form:
        """Return the form."""

    @abstractmethod
    def gain(self, site: AttentionSite) -> str:
        """Return what there is less of, with figures."""

    def fits(self, program: Program, site: AttentionSite) -> bool:
        """Whether there is anything to do, or to say, at a site of a kind that the form is for."""
        return True

    def why_not(self, site: AttentionSite) -> str | None:
        """Return why a site is left as it is, in a sentence, or None."""
        from rewriter.forms import refusal

        if (reason := refusal(self.form(), site)) is not None:
            return reason
        return "its scores or weights are read elsewhere, too" if site.consumers else None

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return nothing: it is sites that change."""
        return (), ()


def is_spelled_out(program: Program, site: AttentionSite) -> bool:
    """Whether the graph holds the scores of a site: not one operator computes it."""
    prims, graph = program.prims(), program.graph
    region = frozenset(site.region)
    held = (v for node in graph.nodes if node.name in region for v in node.outputs if v in prims)
    return sum(isinstance(prims[v].form, Einsum | Reduce) for v in held) > 1
