"""Packed weights: several matrices in one constant, which a graph cuts apart at every call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rewriter.algebra.prims import Constant, Prim, Slice
from rewriter.program.program import Insertion
from rewriter.rules.projections import Projection, known, weight_readers

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.program.program import Program

__all__ = ["unpacked", "why_held_twice"]

ELSEWHERE = "its weight is read elsewhere, too, and would be held twice"
PART = "its weight is a part of a larger one, which would be held all the same"


def why_held_twice(program: Program, projection: Projection, *, apart: bool = False) -> str | None:
    """Return why a new weight would stand beside the old one, in a sentence, or None.

    Parameters
    ----------
    program
        Where.
    projection
        Which gets a new weight.
    apart
        Whether `unpacked` is inserted, too.
    """
    if weight_readers(program.graph, projection) > 1:
        return ELSEWHERE
    part = _part(projection.weight)
    if part is None:
        return None
    if not apart:
        return PART
    overlaps = any(_overlap(part, other) for other in _others(program.prims(), part))
    return ELSEWHERE if overlaps or not _only_cut(program, part) else None


def unpacked(program: Program, gone: Sequence[Projection], note: Mapping[str, str]) -> list[Insertion]:
    """Return constants for the other parts of packed weights, so that nothing reads these any more.

    Parameters
    ----------
    program
        Where.
    gone
        Projections whose weights are read no longer.
    note
        What is written into the graph about it.
    """
    prims = program.prims()
    parts = [part for one in gone if (part := _part(one.weight)) is not None]
    kept = {other for part in parts for other in _others(prims, part)} - set(parts)
    return [_alone(part, note) for part in prims.values() if part in kept]


def _alone(part: Prim, note: Mapping[str, str]) -> Insertion:
    (whole,) = part.inputs
    assert part.value is not None and whole.value is not None, "values of the graph"

    def build(e: Emitter, handles: Sequence[Any]) -> Handle:
        return e.constant(known(part), part.dtype or "float32")

    name = f"{part.value.rpartition('/')[2]}.alone"
    return Insertion(name, (whole.value,), (whole.shape,), build, instead=part.value, metadata=note)


def _part(weight: Prim) -> Prim | None:
    """Return the part of a constant that a weight is, transposed or copied, or None if it is no part."""
    while not isinstance(weight.form, Constant | Slice):
        weight = weight.inputs[0]
    return weight if isinstance(weight.form, Slice) else None


def _others(prims: Mapping[str, Prim], part: Prim) -> Iterator[Prim]:
    """Yield the other parts of the same constant."""
    for other in prims.values():
        if isinstance(other.form, Slice) and other is not part and other.inputs == part.inputs:
            yield other


def _overlap(a: Prim, b: Prim) -> bool:
    assert isinstance(a.form, Slice) and isinstance(b.form, Slice), "both are parts"
    first, second = (
        range(int(x.form.start), int(x.form.start) + int(x.shape[x.form.axis]))
        for x in (a, b)
        if isinstance(x.form, Slice)
    )
    plain = a.form.axis == b.form.axis and a.form.step == b.form.step == 1
    return not plain or (first.start < second.stop and second.start < first.stop)


def _only_cut(program: Program, part: Prim) -> bool:
    """Whether everything that reads a packed constant takes a part of it."""
    (whole,) = part.inputs
    if not isinstance(whole.form, Constant) or whole.value is None:
        return False
    prims = program.prims()
    cut = {other.value for other in (part, *_others(prims, part))}
    reached = [v for node in program.graph.readers(whole.value) for v in node.outputs]
    while reached:
        value = reached.pop()
        if value in cut:
            continue
        if value in prims:
            return False
        reached += [v for node in program.graph.readers(value) for v in node.outputs]
    return whole.value not in program.graph.ends
