"""Projections of one source become one product with their weights side by side.

    before   x · W_q + b_q, x · W_k + b_k, x · W_v + b_v
    after    x · [W_q W_k W_v] + [b_q b_k b_v], cut into three

Queries, keys and values of self-attention, keys and values of cross-attention, gate and value of a gated MLP;
queries of a cross-attention beside them that reads the same tokens, also where each attention turns them its
own way and holds its weights in one matrix.
Refused: weights that are no constants, or that something else reads, too (they would be held twice). `exact`
leaves the rule out on CPUs, where a product takes as long as its parts; it saves calls on accelerators.

Source: Vaswani et al.: Attention Is All You Need, 2017, section 3.2.2 (the projections); Lu et al.:
ParaFormer, 2023 (self- and cross-attention in parallel).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rewriter.algebra.prims import Expand, Map, Permute, Prim, Reshape
from rewriter.algebra.sizes import Size
from rewriter.program.program import Insertion
from rewriter.rules.graph_rule import Change, Declined, GraphRule
from rewriter.rules.packed import unpacked, why_held_twice
from rewriter.rules.projections import Projection, emit_projection, known, projection_of

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.program.program import Program

__all__ = ["SharedProjections"]

_NOTE = {"rule": "shared-projections", "fidelity": "exact"}


class SharedProjections(GraphRule):
    """Projections of the same tensor in one product. Exact."""

    name = "shared-projections"
    looks_for: ClassVar[str] = "x · W1 + b1, x · W2 + b2, …"
    pays: ClassVar[frozenset[str]] = frozenset({"triton"})

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change for each source of several projections."""
        found: dict[tuple[object, str, bool], list[Projection]] = {}
        declined: list[Declined] = []
        prims = program.prims()
        for prim in prims.values():
            one = projection_of(prim)
            if one is not None:
                key = (_origin(prims[one.source]), one.dtype, one.bias is None)
                found.setdefault(key, []).append(one)
        changes: list[Change] = []
        for group in found.values():
            reasons = {one.output: why_held_twice(program, one, apart=True) for one in group}
            alone = [one for one in group if reasons[one.output] is None]
            if len(group) > 1:
                declined += [Declined(name, reason) for name, reason in reasons.items() if reason]
            if len(alone) > 1:
                changes.append(_change(program, alone))
        return changes, declined


def _origin(x: Prim) -> tuple[object, ...]:
    """Return what two values have in common that are views of the same value, made alike."""
    steps: list[object] = []
    while isinstance(x.form, Permute | Reshape | Expand) or x.form == Map("identity"):
        steps.append((x.form, x.shape))
        x = x.inputs[0]
    return (x, *steps)


def _change(program: Program, group: Sequence[Projection]) -> Change:
    source, dtype = group[0].source, group[0].dtype
    before = program.prims()[source].shape
    width = sum((one.width for one in group), Size())
    joined = f"{group[0].output.rpartition('/')[2]}.joined"

    def product(e: Emitter, handles: Sequence[Any]) -> Handle:
        weight = np.concatenate([known(one.weight) for one in group], axis=1)
        biases = [known(one.bias) for one in group if one.bias is not None]
        return emit_projection(e, handles[0], weight, np.concatenate(biases) if biases else None, dtype)

    edits = unpacked(program, group, _NOTE)
    edits.append(Insertion(joined, (source,), (before,), product, metadata=_NOTE))
    start = Size()
    for one in group:
        edits.append(_part(one, joined, (*before[:-1], width), start))
        start = start + one.width
    gain = f"1 product for {len(group)}, {width} columns"
    return Change(group[0].output, tuple(edits), gain)


def _part(one: Projection, joined: str, shape: tuple[Size, ...], start: Size) -> Insertion:
    def cut(e: Emitter, handles: Sequence[Any]) -> Handle:
        return e.slice(handles[0], len(shape) - 1, start, one.width)

    name = f"{one.output.rpartition('/')[2]}.part"
    return Insertion(name, (joined,), (shape,), cut, instead=one.output, metadata=_NOTE)
