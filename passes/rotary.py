"""Rotary position embedding that is spelled out becomes one operator.

    before   x · cos + (-x2, x1) · sin, or (x1 · cos - x2 · sin, x2 · cos + x1 · sin); halves or neighbours
    after    rotary(x, cos, sin)

Angles may come from anywhere: tables, positions that are given, frequencies that are scaled.
Refused: a target without the operator (PyTorch; ONNX before opset 23, unless for ONNX Runtime); angles that
differ along more axes than batch and place, or that differ within a pair.

Source: Su et al.: RoFormer, 2021, equation 34.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rewriter.algebra.index import Affine, Atom, resolve
from rewriter.algebra.sizes import Size, product
from rewriter.lower.canonical import arrange_operand, laid_out
from rewriter.lower.errors import EmitError
from rewriter.program.program import Insertion
from rewriter.rules.graph_rule import Change, Declined, GraphRule
from rewriter.rules.rotations import Rotation, rotation_of
from rewriter.sites.formula import Operand
from rewriter.sites.operands import choose_operand

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.program.program import Program

__all__ = ["Rotary"]

Groups = tuple[tuple[Atom, ...], ...]


@dataclass(frozen=True)
class _Layout:
    """Axes of the operands: of x all of them, of the angles batch, place and pair."""

    x: Groups
    angles: Groups
    heads: Size | None
    """Where x is ``[batch, place, heads · features]``."""


class Rotary(GraphRule):
    """Rotary position embedding as one operator. Exact."""

    name = "rotary"
    looks_for: ClassVar[str] = "x1 · cos - x2 · sin, x2 · cos + x1 · sin"
    pays: ClassVar[frozenset[str]] = frozenset({"onnx", "ort"})

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change for each rotated value."""
        changes: list[Change] = []
        declined: list[Declined] = []
        for name, prim in program.prims().items():
            found = rotation_of(prim)
            if found is None:
                continue
            made = _change(program, found)
            if isinstance(made, str):
                declined.append(Declined(name, made))
            else:
                changes.append(made)
        return changes, declined


def _change(program: Program, one: Rotation) -> Change | str:
    layout = _layout(one)
    if isinstance(layout, str):
        return layout
    operands: dict[str, Operand] = {}
    for name, read, groups in (
        ("x", one.x, layout.x),
        ("cos", one.cos, layout.angles),
        ("sin", one.sin, layout.angles),
    ):
        found = choose_operand(read, groups, peel=False)
        if isinstance(found, str):
            return f"{name}: {found}"
        operands[name] = found[0]
    names = tuple(dict.fromkeys(operand.value for operand in operands.values()))
    prims, root = program.prims(), one.output
    dtype, output = root.dtype or "float32", root.value or ""

    def build(e: Emitter, handles: Sequence[Handle]) -> Handle:
        given = dict(zip(names, handles, strict=True))
        x = arrange_operand(e, given, operands["x"], layout.x, dtype)
        shape = tuple(product(a.size for a in group) for group in layout.angles)
        cos, sin = (arrange_operand(e, given, operands[n], layout.angles, dtype) for n in ("cos", "sin"))
        cos, sin = (t if tuple(e.shape(t)) == shape else e.expand(t, shape) for t in (cos, sin))
        heads = None if layout.heads is None else int(layout.heads)
        made = e.standard("rotary", x, cos, sin, interleaved=one.interleaved, heads=heads)
        if made is None:
            raise EmitError("RotaryEmbedding is an operator from opset 23 on")
        order = [atom for group in layout.x for atom in group]
        return laid_out(e, made, order, resolve((*one.leading, Affine.of(one.feature))), root.shape)

    shapes = tuple(prims[name].shape for name in names)
    note = {"rule": Rotary.name, "fidelity": "exact"}
    edit = Insertion(f"{output.rpartition('/')[2]}.rotary", names, shapes, build, output, metadata=note)
    return Change(output, (edit,), "1 operator for a rotation")


def _layout(one: Rotation) -> _Layout | str:
    """Return the axes of the operands: those that angles differ along are the place, and the batch."""
    axes = [tuple(a for a, _ in dim.terms) for dim in resolve(one.leading)]
    differ = one.cos.atoms | one.sin.atoms
    along = [k for k, atoms in enumerate(axes) if not differ.isdisjoint(atoms)]
    if not along or len(along) > 2:
        return f"the angles differ along {len(along)} axes"
    place = along[-1]
    before, after = axes[:place], _flat(axes[place + 1 :])
    batch = _flat(before)
    heads: tuple[Atom, ...] = ()
    if len(along) == 2:
        if any(axes[: along[0]]):
            return "the angles differ along axes that are not the batch"
        batch, heads = axes[along[0]], _flat(axes[along[0] + 1 : place])
        if heads and after:
            return "heads are on both sides of the place"
    if after:
        count = product(a.size for a in after)
        if not count.static:
            return f"the number of heads is not known: {count}"
        own = (batch, axes[place], (one.pair,))
        return _Layout((batch, axes[place], (*after, one.feature)), own, count)
    if len(along) == 1:
        batch, heads = (), batch
    own = (batch, axes[place], (one.pair,))
    return _Layout((batch, heads, axes[place], (one.feature,)), own, None)


def _flat(groups: Sequence[tuple[Atom, ...]]) -> tuple[Atom, ...]:
    return tuple(atom for group in groups for atom in group)
