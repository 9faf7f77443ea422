"""Pools of one map in one pass: its means and maxima, or the means of its rows and of its columns.

    before   mean(x, axes) and max(x, axes), or mean(x, rows) and mean(x, columns): x is read twice
    after    ``torch.ops.rewriter.pools(x)``, cut in two: x is read once

Channel and spatial gates of mean and maximum are the first, coordinate and local strip attention the second.
PyTorch and ONNX have no operator that pools one map twice; the rule is for the target triton.
Refused: other targets.

Source: Woo and others: CBAM, 2018, equations 2 and 3; Hou, Zhou, Feng: Coordinate Attention, 2021, equations
4 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from rewriter.algebra.sizes import Size, product
from rewriter.lower.errors import EmitError
from rewriter.program.program import Insertion
from rewriter.rules.graph_rule import Change, Declined, GraphRule
from rewriter.rules.pools import Pool, pool_of

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle, KernelEmitter
    from rewriter.program.program import Program

__all__ = ["JointPools"]

_NOTE: Mapping[str, str] = {"rule": "joint-pools", "fidelity": "exact"}

Over = Literal["rows", "lines"]


class JointPools(GraphRule):
    """Several pools of one map in one pass over it. Exact."""

    name = "joint-pools"
    looks_for: ClassVar[str] = "mean(x, axes) and max(x, axes); mean(x, rows) and mean(x, columns)"
    pays: ClassVar[frozenset[str]] = frozenset({"triton"})

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change for each pair of pools."""
        found: dict[str, list[Pool]] = {}
        for prim in program.prims().values():
            pool = pool_of(prim)
            if pool is not None and pool.x.value is not None:
                found.setdefault(pool.x.value, []).append(pool)
        changes: list[Change] = []
        for pools in found.values():
            taken: set[str] = set()
            for k, first in enumerate(pools):
                for second in pools[k + 1 :]:
                    over = None if {first.output, second.output} & taken else _over(first, second)
                    if over is not None:
                        taken |= {first.output, second.output}
                        changes.append(_change(program, first, second, over))
        return changes, []


def _over(a: Pool, b: Pool) -> Over | None:
    """Return how two pools of one value are one, or None."""
    whole = list(range(a.axes[0], a.axes[-1] + 1)) == list(a.axes)
    if a.axes == b.axes and {a.of, b.of} == {"mean", "max"} and whole:
        return "rows"
    last = len(a.x.shape) - 1
    lines = a.of == b.of == "mean" and {a.axes, b.axes} == {(last,), (last - 1,)}
    return "lines" if lines else None


def _change(program: Program, a: Pool, b: Pool, over: Over) -> Change:
    x, axes = a.x, a.axes if over == "rows" else (len(a.x.shape) - 2,)
    count = product(x.shape[: axes[0]])
    rows = product(x.shape[k] for k in axes)
    places = product(x.shape[axes[-1] + 1 :])
    shape = (Size.of(2), count, places) if over == "rows" else (count, rows + places)

    def pooled(e: Emitter, handles: Sequence[Any]) -> Handle:
        if e.target != "triton":
            raise EmitError("no operator of this target pools one map twice in one pass")
        kernels = cast("KernelEmitter", e)
        return kernels.kernel("pools", [e.reshape(handles[0], (count, rows, places))], {"over": over}, shape)

    name = f"{a.output.rpartition('/')[2]}.pools"
    joint = Insertion(name, (x.value or "",), (x.shape,), pooled, metadata=_NOTE)
    edits = [_part(program, pool, name, shape, over, rows) for pool in (a, b)]
    what = "mean and maximum" if over == "rows" else "rows and columns"
    return Change(a.output, (joint, *edits), f"1 pass for 2: {what}")


def _part(
    program: Program, pool: Pool, joint: str, shape: tuple[Size, ...], over: Over, rows: Size
) -> Insertion:
    wanted = program.prims()[pool.output].shape

    def cut(e: Emitter, handles: Sequence[Any]) -> Handle:
        if over == "rows":
            made = e.select(handles[0], 0, 0 if pool.of == "mean" else 1)
        elif pool.axes[0] == len(pool.x.shape) - 1:
            made = e.slice(handles[0], 1, Size.of(0), rows)
        else:
            made = e.slice(handles[0], 1, rows, pool.x.shape[-1])
        return e.reshape(made, wanted)

    name = f"{pool.output.rpartition('/')[2]}.{pool.of}"
    return Insertion(name, (joint,), (shape,), cut, instead=pool.output, metadata=_NOTE)
