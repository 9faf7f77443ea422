"""Means and maxima over whole axes, by what reads the map once and fastest.

    before   max(x, axis) with places that nobody reads, pools by windows, mean or max over channels
    after    amax(x, axes), ReduceMax, a product with 1/C; of a map as it stands in memory

Channel and spatial gates pool like this. Pools by windows and maxima with their places are several times
slower than reductions, in PyTorch and in ONNX Runtime; so are, in ONNX Runtime, reductions over the rows of
one matrix (the channels of one image): a mean becomes a product, and a maximum is taken of groups of rows
first. A map that is copied with its axes in another order is pooled where it was.
Refused: maxima whose places are read, too.

Source: Woo and others: CBAM: Convolutional Block Attention Module, 2018, equations 2 and 3 (what is pooled).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from rewriter.algebra.frontends.axes import behaviour, source
from rewriter.algebra.sizes import ONE
from rewriter.program.program import Insertion
from rewriter.rules.graph_rule import Change, Declined, GraphRule
from rewriter.rules.pools import Pool, emit_pool, pool_of, slow_rows, unturned

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.program.program import Program

__all__ = ["GlobalPool"]


class GlobalPool(GraphRule):
    """Means and maxima over whole axes by the fastest operators. Exact."""

    name = "global-pool"
    looks_for: ClassVar[str] = "mean or max of x over whole axes"

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change for each pool that can be computed faster."""
        changes: list[Change] = []
        declined: list[Declined] = []
        for prim in program.prims().values():
            pool = pool_of(prim)
            if pool is None or all(pool.x.shape[axis] == ONE for axis in pool.axes):
                continue
            gain = _gain(program, pool)
            if isinstance(gain, Declined):
                declined.append(gain)
            elif gain is not None:
                changes.append(_change(program, pool, gain))
        return changes, declined


def _gain(program: Program, pool: Pool) -> str | Declined | None:
    """Return what there is less of, or None where nothing is; a refusal where it cannot be done."""
    node = source(program.graph, pool.output)[0]
    found = behaviour(program.graph, pool.output)
    if found is not None and found.rule == "resampled" and (pool.of == "max" or program.format == "onnx"):
        return "a reduction for a pool by windows"
    if node is not None and pool.output not in node.outputs:
        if len(program.graph.readers(node.outputs[0])) > 1:
            return Declined(pool.output, "the places of the maxima are read, too")
        return "no places of maxima, which nobody reads"
    if program.format == "onnx" and slow_rows(pool.x.shape, pool.axes) is not None:
        return "a product for a sum of rows" if pool.of == "mean" else "maxima of groups of rows first"
    whole = unturned(pool.x)
    # a view of PyTorch costs nothing, an operator of ONNX copies
    copied = whole.turned and (whole.copied or program.format == "onnx")
    return "no copy of a map with its axes turned" if copied else None


def _change(program: Program, pool: Pool, gain: str) -> Change:
    whole = unturned(pool.x)
    x, axes = whole.prim, tuple(k for k, axis in enumerate(whole.order) if axis in pool.axes)
    left = [axis for axis in whole.order if axis is not None and axis not in pool.axes]
    shape = program.prims()[pool.output].shape

    def build(e: Emitter, handles: Sequence[Any]) -> Handle:
        made = emit_pool(e, handles[0], pool.of, axes)
        if left != sorted(left):
            made = e.reshape(made, [pool.x.shape[axis] for axis in left])
            made = e.permute(made, [left.index(axis) for axis in sorted(left)])
        return made if tuple(e.shape(made)) == tuple(shape) else e.reshape(made, shape)

    name = f"{pool.output.rpartition('/')[2]}.{pool.of}"
    note = {"rule": GlobalPool.name, "fidelity": "exact"}
    edit = Insertion(name, (x.value or "",), (x.shape,), build, instead=pool.output, metadata=note)
    return Change(pool.output, (edit,), gain)
