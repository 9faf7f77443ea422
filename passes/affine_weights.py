"""Weights that are blended with a known matrix become attention, and the blend of its results.

    before   (a · softmax(q kᵀ) + b · I + c) · v
    after    a · (softmax(q kᵀ) · v) + b · v + c · (sum of v)

Shaped and skip attention, weights less their mean, positions blended in: what is one for all keys meets
the sum of the values, a diagonal the values themselves, and any other matrix is a product of its own, of
constants. The factors may differ by query and depend on inputs. The attention that is left is plain,
and forms may be applied to it.
Refused: weights that are read elsewhere, or are another function than a sum; an addend that inputs change
key by key; sizes that are not known.

Source: Noci et al.: The Shaped Transformer, 2023, equation 5; He and Hofmann: Simplifying Transformer Blocks,
2023, equation 8; d'Ascoli et al.: ConViT, 2021, equation 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from rewriter.rules.blended import Blended, insertion, matrix_of
from rewriter.rules.graph_rule import Change, Declined, GraphRule
from rewriter.rules.monomials import monomials
from rewriter.sites.values import Known

if TYPE_CHECKING:
    from rewriter.program.program import Program
    from rewriter.sites.origin import Origin
    from rewriter.sites.site import AttentionSite

__all__ = ["AffineWeights"]

_NOTE = {"rule": "affine-weights", "fidelity": "exact"}


class AffineWeights(GraphRule):
    """What is blended into the weights of attention, blended into its results. Exact."""

    name = "affine-weights"
    looks_for: ClassVar[str] = "(a · softmax(q · kᵀ) + b) · v"
    pays = frozenset({"torch", "triton"})  # ONNX Runtime multiplies by positions as slowly

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change for each site whose weights are a sum."""
        from rewriter.sites.origin import Origin

        origin, known = Origin(program.graph, program.prims()), Known()
        changes: list[Change] = []
        declined: list[Declined] = []
        for site in program.sites:
            if "weight-function" not in site.traits:
                continue
            found = _blended(site, origin, known)
            if isinstance(found, str):
                declined.append(Declined(site.output, found))
            else:
                edit = insertion(found, program.prims(), _NOTE)
                changes.append(Change(site.output, (edit,), _gain(found)))
        return changes, declined


def _blended(site: AttentionSite, origin: Origin, known: Known) -> Blended | str:
    """Return the site with the softmax alone and what is blended in, or why not."""
    from rewriter.forms import refusal
    from rewriter.kernels.softmax.form import Softmax

    formula = site.formula
    plain = replace(
        site,
        formula=replace(formula, weights=None),
        traits=tuple(t for t in site.traits if t != "weight-function"),
    )
    reason = refusal(Softmax(), plain)
    if reason is not None:
        return reason
    if site.consumers:
        return "its scores or weights are read elsewhere, too"
    parts = None if formula.weights is None else monomials(formula.weights, formula.axes.keys, origin)
    if parts is None or not any(m.softmax for m in parts.parts):
        return "its weights are no sum of a share of the softmax and others"
    shares = tuple(m for m in parts.parts if m.softmax)
    if any(m.matrices for m in shares):
        return "its weights are scaled key by key"
    others = [(m, matrix_of(site, m, known)) for m in parts.parts if not m.softmax]
    for _, matrix in others:
        if isinstance(matrix, str):
            return matrix
    if parts.renormalised and not site.keys.static:
        return f"the number of keys that its weights sum over is not known: {site.keys}"
    addends = tuple((m, matrix) for m, matrix in others if not isinstance(matrix, str))
    return Blended(plain, shares, addends, parts.renormalised)


def _gain(found: Blended) -> str:
    matrices = [matrix for _, matrix in found.addends]
    words = [
        ("the sum of its values", any(m.every is not None for m in matrices)),
        ("its values", any(m.own is not None for m in matrices)),
        ("products with a known matrix", any(m.full is not None for m in matrices)),
    ]
    blended = [what for what, there in words if there]
    return f"plain attention, and {', '.join(blended) or 'a factor'} beside it"
