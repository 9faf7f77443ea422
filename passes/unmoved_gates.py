"""What a map is weighed by, or added to, meets the map where it lies: no turned and no expanded copies.

    before   (copy of x.transpose · g).transpose, x · expand(g), x + expand(c)
    after    x · g.transpose, x · g, x + c

Triplet attention turns its map for each of three gates, and turns it back; many channel gates expand their
weights to the size of the map before they multiply. In PyTorch views of a map cost nothing and only copies
are left out, in ONNX each such operator is a copy.
Refused: a turned product that is read elsewhere, too.

Source: Misra, Nalamada, Arasanipalai, Hou: Rotate to Attend: Convolutional Triplet Attention Module, 2021,
equation 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from rewriter.algebra.index import Atom, fresh, operand_index, resolve
from rewriter.algebra.prims import Expand, Map, Permute, Prim
from rewriter.algebra.term import Read, source
from rewriter.lower.canonical import arrange_operand
from rewriter.program.program import Insertion
from rewriter.rules.graph_rule import Change, Declined, GraphRule
from rewriter.rules.unexpanded import unexpanded, varies_along
from rewriter.sites.formula import Operand

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.program.program import Program

__all__ = ["UnmovedGates"]

_IDENTITY = Map("identity")
_JOINS = (Map("mul"), Map("add"))

BETWEEN = 16
"""How many values there may be from a copy to the product or sum that it is of, both counted."""


class UnmovedGates(GraphRule):
    """Gates and additions without turned or expanded copies of their operands. Exact."""

    name = "unmoved-gates"
    looks_for: ClassVar[str] = "x · g or x + c, behind copies with other axes"

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change for each product or sum that reads or writes a copy."""
        changes: list[Change] = []
        declined: list[Declined] = []
        inside: set[str | None] = set()
        for name, prim in reversed(list(program.prims().items())):
            found = None if name in inside else _joined(prim)
            gain = None if found is None else _gain(program, found)
            if found is None or gain is None:
                continue
            inside.update(at.prim.value for at in found.between)
            reason = _why_not(program, found)
            if reason is None:
                changes.append(_change(program, found, gain))
            else:
                declined.append(Declined(name, reason))
        return changes[::-1], declined[::-1]


@dataclass(frozen=True)
class _Joined:
    """A product or a sum of two values, and a view of it with its axes in another order.

    Parameters
    ----------
    prim
        The view, or the product itself.
    between
        Reads from the view to the product.
    sides
        The operands, read at the axes of the view.
    """

    prim: Prim
    between: tuple[Read, ...]
    sides: tuple[Read, ...]

    @property
    def groups(self) -> list[tuple[Atom, ...]]:
        """The atoms of each axis of the view."""
        index = resolve(self.between[0].index)
        return [tuple(atom for atom, _ in dim.terms) for dim in index]

    def operand(self, side: Read) -> Operand | None:
        """Return where an operand is read with the fewest axes, in the order of the view."""
        return unexpanded(side, self.groups)


def _joined(prim: Prim) -> _Joined | None:
    if prim.value is None or not (isinstance(prim.form, Permute) or prim.form in (_IDENTITY, *_JOINS)):
        return None
    between = []
    for at in islice(source(Read(prim, fresh(prim.shape))), BETWEEN):
        if not isinstance(at.prim.form, Permute) and at.prim.form not in (_IDENTITY, *_JOINS):
            return None
        between.append(at)
    last = between[-1].prim
    if last.form not in _JOINS or last.dtype != prim.dtype or last.value is None:
        return None
    index = resolve(between[-1].index)
    sides = tuple(Read(x, operand_index(x.shape, last.shape, index)) for x in last.inputs)
    return _Joined(prim, tuple(between), sides)


def _gain(program: Program, found: _Joined) -> str | None:
    """Return which copies are left out, or None where there are none."""
    every = found.between[0].atoms
    if frozenset(atom for side in found.sides for atom in varies_along(side)) != every:
        return None  # both are expanded along an axis
    sides = [(side, found.operand(side)) for side in found.sides]
    if any(operand is None for _, operand in sides):
        return None
    steps = [at.prim.form for side, operand in sides for at in _steps(side, operand)]
    if len(found.between) == 1:
        expanded = program.format == "onnx" and any(isinstance(form, Expand) for form in steps)
        return "no copy of an operand as large as the result" if expanded else None
    turned = any(
        varies_along(side) == every
        and _in_order(found, operand)
        and any(isinstance(at.prim.form, Permute) for at in _steps(side, operand))
        for side, operand in sides
    )
    copied = program.format == "onnx" or _IDENTITY in (*steps, *(at.prim.form for at in found.between))
    return "no copies of a map with its axes turned" if turned and copied else None


def _steps(side: Read, operand: Operand | None) -> Iterator[Read]:
    """Yield what is between an operand of the product and where it is read instead."""
    for at in source(side):
        if operand is None or at.prim.value == operand.value:
            return
        yield at


def _in_order(found: _Joined, operand: Operand | None) -> bool:
    """Whether a value has the axes of the result in their order."""
    if operand is None:
        return False
    read = [atom for dim in resolve(operand.index) for atom, _ in dim.terms]
    return read == [atom for group in found.groups for atom in group]


def _why_not(program: Program, found: _Joined) -> str | None:
    names = [at.prim.value for at in found.between[1:] if at.prim.value is not None]
    if any(name in program.graph.ends or len(program.graph.readers(name)) > 1 for name in names):
        return "what is turned back is read elsewhere, too"
    return None


def _change(program: Program, found: _Joined, gain: str) -> Change:
    prims, output, dtype = program.prims(), found.prim.value or "", found.prim.dtype or "float32"
    operands = [operand for side in found.sides if (operand := found.operand(side)) is not None]
    names = tuple(dict.fromkeys(operand.value for operand in operands))
    form = found.between[-1].prim.form
    assert isinstance(form, Map), "it is a product or a sum"

    def build(e: Emitter, handles: Sequence[Any]) -> Handle:
        given = dict(zip(names, handles, strict=True))
        sides = [arrange_operand(e, given, operand, found.groups, dtype) for operand in operands]
        made = e.map(form.fn, *sides)
        return made if tuple(e.shape(made)) == found.prim.shape else e.reshape(made, found.prim.shape)

    note = {"rule": UnmovedGates.name, "fidelity": "exact"}
    shapes = tuple(prims[name].shape for name in names)
    name = f"{output.rpartition('/')[2]}.unmoved"
    return Change(output, (Insertion(name, names, shapes, build, instead=output, metadata=note),), gain)
