"""Branches that constants switch off are not computed.

    before   x + 0 · f(y), where(False, f(y), x), x + tanh(gate) · f(y) with gates that are 0
    after    x

What training leaves behind: residual branches whose scale or gate is zero (dropped layers, gated
cross-attention that was never opened), choices by a flag of the model. What only they read goes with them.
Of a branch that would give infinity or NaN nothing is left either: 0 is a factor of real numbers here.
Refused: what a constant scales by zero in some places only; zeros that are constants themselves, as biases.

Source: x + 0 = x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from rewriter.algebra.index import fresh
from rewriter.algebra.prims import Map, Prim
from rewriter.algebra.sizes import product
from rewriter.algebra.term import Read
from rewriter.program.program import Insertion
from rewriter.rules.graph_rule import Change, Declined, GraphRule
from rewriter.sites.values import Known

if TYPE_CHECKING:
    from rewriter.lower.emitter import Emitter, Handle
    from rewriter.program.program import Program

__all__ = ["DeadBranches"]

LARGEST = 1 << 22
"""Constants with more entries are not looked into."""

FACTORS = 16
"""How many values behind a branch are looked at to find a factor that is zero."""

_KEEP_ZERO = (Map("neg"), Map("identity"), Map("cast"))

_NOTE = {"rule": "dead-branches", "fidelity": "exact"}


class DeadBranches(GraphRule):
    """Sums and choices without the branches that constants switch off. Exact."""

    name = "dead-branches"
    looks_for: ClassVar[str] = "x + 0 · f(y), where(False, f(y), x)"

    def changes(self, program: Program) -> tuple[Sequence[Change], Sequence[Declined]]:
        """Return one change for each sum or choice of which one branch is left."""
        known = Known()
        changes: list[Change] = []
        for name, prim in program.prims().items():
            left = _left(prim, known)
            if left is None or left.value is None:
                continue
            if (left.shape, left.dtype) == (prim.shape, prim.dtype):
                changes.append(_change(name, left))
        return changes, ()


def _left(prim: Prim, known: Known) -> Prim | None:
    """Return the operand that a value is equal to, or None."""
    if known.closed(prim) or "float" not in (prim.dtype or ""):
        return None
    match prim.form, prim.inputs:
        case Map("add"), (a, b):
            return a if _is_zero(b, known) else b if _is_zero(a, known) else None
        case Map("sub"), (a, b):
            return a if _is_zero(b, known) else None
        case Map("where"), (flag, a, b):
            found = _all(flag, known)
            return None if found is None else a if found else b
        case _:
            return None


def _is_zero(x: Prim, known: Known) -> bool:
    """Whether a value is a product with a constant that is zero everywhere; a bias of zeros is no branch."""
    seen: set[Prim] = set()
    stack = [x]
    while stack and len(seen) < FACTORS:
        at = stack.pop()
        if at in seen:
            continue
        seen.add(at)
        if at.form == Map("mul"):
            if any(_all(y, known) == 0 for y in at.inputs):
                return True
            stack += at.inputs
        elif at.form in _KEEP_ZERO:
            stack += at.inputs
    return False


def _all(x: Prim, known: Known) -> float | None:
    """Return the number that a known tensor holds everywhere, or None."""
    size = product(x.shape).known()
    if not known.closed(x) or size is None or not 0 < size <= LARGEST:
        return None
    index = fresh(x.shape)
    found = known.array(Read(x, index), [a for dim in index for a, _ in dim.terms])
    if found is None or (found != found.flat[0]).any():
        return None
    return float(found.flat[0])


def _change(name: str, left: Prim) -> Change:
    assert left.value is not None, "it has been asked"

    def build(e: Emitter, handles: Sequence[Any]) -> Handle:
        return e.map("identity", handles[0])

    edit = Insertion(
        f"{name.rpartition('/')[2]}.left", (left.value,), (left.shape,), build, instead=name, metadata=_NOTE
    )
    return Change(name, (edit,), f"{left.value} stands for it")
