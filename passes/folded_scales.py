"""Constant factors behind a projection move into its weights.

    before   (x · W + b) · g;  (x · W + b) · kᵀ · t
    after    x · (W g) + b g;  (x · (W t) + b t) · kᵀ

A layer's scale (LayerScale), one factor per head, fixed head gates, the tanh(alpha) that lets a branch
in, and temperatures, on the queries or on the scores. Views may lie between, and the projection may be
a joint one for queries, keys and values: only the columns that are scaled change.
Refused: columns that something else reads unscaled; factors that differ along other axes than the columns;
weights that something else reads, too. One number beside an unscaled read is no scale but half of a GELU, and
is passed over.

Source: Touvron et al.: Going deeper with Image Transformers, 2021, equation 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rewriter.program.program import Insertion
from rewriter.rules.graph_rule import Change, Declined, GraphRule
from rewriter.rules.packed import why_held_twice
from rewriter.rules.projections import emit_projection, known
from rewriter.rules.scaled import Scaled, scaled

if TYPE_CHECKING:
    from rewriter.algebra.sizes import Size
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.program.program import Program

__all__ = ["FoldedScales"]

_UNSCALED = "the product is read unscaled, too"
_NOTE = {"rule": "folded-scales", "fidelity": "exact"}


class FoldedScales(GraphRule):
    """Constant factors as part of the weights before them. Exact."""

    name = "folded-scales"
    looks_for: ClassVar[str] = "(x · W + b) · g"

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change for each projection."""
        folded: dict[str, list[Scaled]] = {}
        declined: list[Declined] = []
        for prim in program.prims().values():
            if (found := scaled(prim)) is None:
                continue
            reason = _why_not(program, found)
            if reason is None:
                folded.setdefault(found.projection.output, []).append(found)
            elif reason != _UNSCALED or np.ptp(found.factors[sorted(found.columns)]):
                declined.append(Declined(found.output, reason))
        return [_change(program, together) for together in folded.values()], declined


def _why_not(program: Program, found: Scaled) -> str | None:
    if not np.isfinite(found.factors).all():
        return "a factor is not finite"
    return why_held_twice(program, found.projection) if found.alone(program) else _UNSCALED


def _change(program: Program, together: Sequence[Scaled]) -> Change:
    first, prims = together[0], program.prims()
    one, factors = first.projection, np.prod([found.factors for found in together], axis=0)

    def build(e: Emitter, handles: Sequence[Any]) -> Handle:
        weight, dtype = known(one.weight), known(one.weight).dtype
        bias = None if one.bias is None else (known(one.bias) * factors).astype(dtype)
        return emit_projection(e, handles[0], (weight * factors).astype(dtype), bias, one.dtype)

    direct = first.unscaled == one.output
    edits = [
        Insertion(
            f"{one.output.rpartition('/')[2]}.scaled",
            (one.source,),
            (prims[one.source].shape,),
            build,
            instead=first.output if direct else one.output,
            metadata=_NOTE,
        )
    ]
    edits += [_unscaled(found, prims[found.unscaled].shape) for found in together if not direct]
    columns = sum(len(found.columns) for found in together)
    return Change(first.output, tuple(edits), f"{columns} factors are part of the weights")


def _unscaled(found: Scaled, shape: tuple[Size, ...]) -> Insertion:
    """Return the edit that reads what was multiplied in place of the product."""

    def build(e: Emitter, handles: Sequence[Any]) -> Handle:
        return e.map("identity", handles[0])

    name = f"{found.output.rpartition('/')[2]}.unscaled"
    return Insertion(name, (found.unscaled,), (shape,), build, instead=found.output, metadata=_NOTE)
