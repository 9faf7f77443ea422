"""Projections of one source become one product with their weights side by side.

    before   x · W_q + b_q, x · W_k + b_k, x · W_v + b_v
    after    x · [W_q W_k W_v] + [b_q b_k b_v], cut into three

Queries, keys and values of self-attention, keys and values of cross-attention, gate and value of a gated MLP.
Refused: weights that are no constants, or that something else reads, too (they would be held twice). `exact`
leaves the rule out on CPUs, where a product takes as long as its parts; it saves calls on accelerators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from rewriter.algebra.prims import Constant, Einsum, Map, Permute, Prim
from rewriter.algebra.sizes import Size
from rewriter.program.program import Insertion
from rewriter.rules.graph_rule import Change, Declined, GraphRule

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.program.program import Program

__all__ = ["SharedProjections"]

_NOTE = {"rule": "shared-projections", "fidelity": "exact"}


@dataclass(frozen=True)
class _Projection:
    """``x · weight + bias``; ``weight`` is ``[in, out]``, ``bias`` ``[out]`` or None."""

    output: str
    source: str
    shape: tuple[Size, ...]
    dtype: str
    weight: Prim
    bias: Prim | None

    @property
    def width(self) -> Size:
        return self.shape[-1]


class SharedProjections(GraphRule):
    """Projections of the same tensor in one product. Exact."""

    name = "shared-projections"
    looks_for: ClassVar[str] = "x · W1 + b1, x · W2 + b2, …"
    pays: ClassVar[frozenset[str]] = frozenset({"triton"})

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change for each source of several projections."""
        found: dict[tuple[str, str, bool], list[_Projection]] = {}
        declined: list[Declined] = []
        for name, prim in program.prims().items():
            one = _projection(name, prim)
            if one is not None:
                found.setdefault((one.source, one.dtype, one.bias is None), []).append(one)
        changes: list[Change] = []
        for group in found.values():
            alone = [one for one in group if _weight_readers(program, one) == 1]
            shared = [one.output for one in group if one not in alone]
            if len(group) > 1:
                reason = "its weight is read elsewhere, too, and would be held twice"
                declined += [Declined(name, reason) for name in shared]
            if len(alone) > 1:
                changes.append(_change(program, alone))
        return changes, declined


def _projection(name: str, prim: Prim) -> _Projection | None:
    """Return a value as a product of a named tensor's last axis with a weight, plus a bias."""
    bias: Prim | None = None
    at = prim
    if at.form == Map("add") and len(at.inputs) == 2:
        at, bias = at.inputs
        if not isinstance(bias.form, Constant) or bias.shape != prim.shape[-1:] or at.value is not None:
            return None
    if not isinstance(at.form, Einsum) or len(at.inputs) != 2 or at.dtype is None:
        return None
    x, weight = at.inputs
    (left, right), rank = at.form.operands, len(at.shape)
    plain = left[:-1] == at.form.output[:-1] and right == (left[-1], at.form.output[-1]) and len(left) == rank
    if not plain or x.value is None or not _is_constant(weight) or len(set(left)) != rank:
        return None
    return _Projection(name, x.value, prim.shape, at.dtype, weight, bias)


def _is_constant(x: Prim) -> bool:
    inner = x.inputs[0] if isinstance(x.form, Permute) else x
    return isinstance(inner.form, Constant)


def _array(x: Prim) -> np.ndarray:
    """Return a constant, which may be transposed."""
    if isinstance(x.form, Permute):
        return np.transpose(_array(x.inputs[0]), x.form.order)
    assert isinstance(x.form, Constant), "it has been looked at"
    return np.asarray(x.form.load())


def _weight_readers(program: Program, one: _Projection) -> int:
    weight = one.weight if one.weight.value is not None else one.weight.inputs[0]
    return len(program.graph.readers(weight.value)) if weight.value is not None else 1


def _change(program: Program, group: Sequence[_Projection]) -> Change:
    source, dtype = group[0].source, group[0].dtype
    before = program.prims()[source].shape
    width = sum((one.width for one in group), Size())
    joined = f"{group[0].output.rpartition('/')[2]}.joined"

    def product(e: Emitter, handles: Sequence[Any]) -> Handle:
        weight = np.concatenate([_array(one.weight) for one in group], axis=1)
        biases = [_array(one.bias) for one in group if one.bias is not None]
        made = e.matmul(handles[0], e.constant(weight, dtype))
        return e.map("add", made, e.constant(np.concatenate(biases), dtype)) if biases else made

    edits = [Insertion(joined, (source,), (before,), product, metadata=_NOTE)]
    start = Size()
    for one in group:
        edits.append(_part(one, joined, (*before[:-1], width), start))
        start = start + one.width
    gain = f"1 product for {len(group)}, {width} columns"
    return Change(group[0].output, tuple(edits), gain)


def _part(one: _Projection, joined: str, shape: tuple[Size, ...], start: Size) -> Insertion:
    def cut(e: Emitter, handles: Sequence[Any]) -> Handle:
        return e.slice(handles[0], len(shape) - 1, start, one.width)

    name = f"{one.output.rpartition('/')[2]}.part"
    return Insertion(name, (joined,), (shape,), cut, instead=one.output, metadata=_NOTE)
