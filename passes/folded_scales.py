"""Constant factors behind a projection move into its weights.

    before   (x · W + b) · g
    after    x · (W g) + b g

A layer's scale (LayerScale), one factor per head, temperatures, fixed head gates, and the tanh(alpha) that
lets a branch in; views may lie between.
Refused: a product that something else reads unscaled; factors that differ along other axes than the columns;
weights that something else reads, too. One number beside an unscaled read is no scale but half of a GELU, and
is passed over.

Source: Touvron et al.: Going deeper with Image Transformers, 2021, equation 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rewriter.algebra.index import fresh, operand_index, resolve
from rewriter.algebra.prims import Map, Prim
from rewriter.algebra.term import Read, source
from rewriter.program.program import Insertion
from rewriter.rules.constants import constant_of
from rewriter.rules.graph_rule import Change, Declined, GraphRule
from rewriter.rules.packed import why_held_twice
from rewriter.rules.projections import (
    Projection,
    emit_projection,
    known,
    projection_of,
)

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.program.program import Program

__all__ = ["FoldedScales"]

_UNSCALED = "the product is read unscaled, too"


@dataclass(frozen=True)
class _Scaled:
    """A product of a projection and constant factors, one per column."""

    output: str
    projection: Projection
    views: tuple[Prim, ...]
    factors: np.ndarray


class FoldedScales(GraphRule):
    """Constant factors as part of the weights before them. Exact."""

    name = "folded-scales"
    looks_for: ClassVar[str] = "(x · W + b) · g"

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change for each factor."""
        changes: list[Change] = []
        declined: list[Declined] = []
        for name, prim in program.prims().items():
            if prim.form not in (Map("mul"), Map("div")):
                continue
            for x, g in _sides(prim):
                found = _scaled(prim, x, g)
                if found is None:
                    continue
                reason = _why_not(program, found)
                if reason is None:
                    changes.append(_change(program, found))
                elif reason != _UNSCALED or np.ptp(found.factors):
                    declined.append(Declined(name, reason))
                break
        return changes, declined


def _sides(prim: Prim) -> Iterator[tuple[Prim, Prim]]:
    """Yield what may be a projection and its factor."""
    a, b = prim.inputs
    yield a, b
    if prim.form == Map("mul"):
        yield b, a


def _scaled(prim: Prim, x: Prim, g: Prim) -> _Scaled | None:
    index = fresh(prim.shape)
    *_, factor = source(Read(g, operand_index(g.shape, prim.shape, index)))
    if prim.value is None or x.shape != prim.shape:
        return None
    steps = list(source(Read(x, index)))
    at = next((k for k, step in enumerate(steps) if projection_of(step.prim, whole=False)), None)
    if at is None:
        return None
    projection = projection_of(steps[at].prim, whole=False)
    assert projection is not None
    numbers = constant_of(factor.prim)
    factors = None if numbers is None else _by_column(steps[at], factor, numbers)
    if factors is None or projection.dtype != prim.dtype:
        return None
    if prim.form == Map("div"):
        with np.errstate(divide="ignore"):
            factors = 1 / factors
    return _Scaled(prim.value, projection, tuple(s.prim for s in reversed(steps[:at])), factors)


def _by_column(product: Read, factor: Read, constant: np.ndarray) -> np.ndarray | None:
    """Return the factor of each column, in float64, if it depends on nothing else."""
    *others, column = resolve(product.index)
    atoms = [a for a, _ in column.terms]
    if any(a in atoms for dim in others for a, _ in dim.terms):
        return None
    found = column.dense()
    index = resolve(factor.index)
    if found is None or found[1].known() != 1 or any(a not in atoms for dim in index for a, _ in dim.terms):
        return None
    sizes = [a.size.known() for a in found[0]]
    if any(n is None for n in sizes):
        return None
    places = dict(zip(found[0], np.indices([n for n in sizes if n is not None]), strict=True))
    shape = [n for n in sizes if n is not None]
    taken = tuple(
        sum((places[a] * int(s) for a, s in dim.terms), np.full(shape, int(dim.start))) for dim in index
    )
    values = constant[taken] if taken else np.broadcast_to(constant, shape)
    return np.asarray(values).reshape(-1) if product.prim.shape[-1].known() == values.size else None


def _why_not(program: Program, found: _Scaled) -> str | None:
    graph = program.graph
    if not np.isfinite(found.factors).all():
        return "a factor is not finite"
    between = [p.value for p in found.views if p.value is not None] + [found.projection.output]
    if any(len(graph.readers(v)) != 1 or v in graph.outputs for v in between):
        return _UNSCALED
    return why_held_twice(program, found.projection)


def _change(program: Program, found: _Scaled) -> Change:
    from rewriter.demand.selection import replayed

    one = found.projection

    def build(e: Emitter, handles: Sequence[Any]) -> Handle:
        weight, dtype = known(one.weight), known(one.weight).dtype
        bias = None if one.bias is None else (known(one.bias) * found.factors).astype(dtype)
        made = emit_projection(e, handles[0], (weight * found.factors).astype(dtype), bias, one.dtype)
        return replayed(e, made, found.views)

    note = {"rule": FoldedScales.name, "fidelity": "exact"}
    name = f"{found.output.rpartition('/')[2]}.scaled"
    shape = program.prims()[one.source].shape
    edit = Insertion(name, (one.source,), (shape,), build, instead=found.output, metadata=note)
    return Change(found.output, (edit,), f"{found.factors.size} factors are part of the weights")
